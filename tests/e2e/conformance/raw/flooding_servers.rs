//! Servers that flood a client: unsolicited messages take no memory, and the client still gets its
//! answer.

use super::encode::{Body, Limits, message};
use super::server::{Caller, Server};
use crate::support::{MAX_MEMORY, Ran, blobferry};

/// Number of times that a flood repeats its message.
const REPETITIONS: u64 = 30_000;

/// Repeats a frame [`REPETITIONS`] times, then answers the request for the server's counters.
///
/// A client that has disconnected may connect again and leave before it sends anything.
fn flood(caller: &mut Caller, frame: &[u8]) {
    if caller.receive().is_none() {
        return;
    }
    caller.send(Body::welcome(Limits::DEFAULT, 0));
    let Some(id) = caller.request_or_end() else { return };
    for _ in 0..REPETITIONS / 1000 {
        caller.write(&frame.repeat(1000));
    }
    caller.send(Body::new(message::REPLY).ints([id, 0, 9, 1]).bytes(b"floods").int(7));
    caller.wait_for_the_end();
}

/// Runs `blobferry status` against a server that floods.
fn status_from_flooding_server(transport: &str, frame: Vec<u8>) -> Ran {
    let server = Server::new(move |caller| flood(caller, &frame));
    let cache = tempfile::tempdir().unwrap();
    let mut command = blobferry(&["status", "--transport", transport, "--server", &server.address]);
    command.arg("--cache").arg(cache.path()).env("RUST_LOG", "blobferry=debug");
    let ran = Ran::from(command.output().unwrap());
    assert!(ran.peak_memory() < MAX_MEMORY, "{} bytes", ran.peak_memory());
    ran
}

fn client_gets_its_answer_through_a_flood(transport: &str) {
    let invalidation = (0..50).fold(Body::new(message::INVALIDATE).ints([7, 50]), |body, oid| body.int(oid));
    let floods = [
        ("commits", invalidation.frame()),
        ("commits of nothing", Body::new(message::INVALIDATE).ints([7, 0]).frame()),
        ("pongs", Body::new(message::PONG).int(7).frame()),
        ("credit", Body::new(message::CONNECTION_CREDIT).int(Limits::DEFAULT.connection_window).frame()),
        ("goodbyes", Body::new(message::GOODBYE).frame()),
    ];
    for (name, frame) in floods {
        let ran = status_from_flooding_server(transport, frame);
        assert_eq!((ran.code, ran.stdout.trim()), (0, "floods\t7"), "{name}: {ran:?}");
    }
}

fn client_disconnects_from_a_violating_server(transport: &str) {
    let replied = |id: u64| Body::new(message::REPLY).ints([id, 0, 0]).frame();
    let floods = [
        ("pings", Body::new(message::PING).int(7).frame()),
        ("replies to nothing", replied(1000)),
        ("blobs", Body::blob_start(1000, 0, 10, 10).frame()),
        ("chunks", Body::blob_chunk(1000, 0, 100).frame()),
    ];
    for (name, frame) in floods {
        let ran = status_from_flooding_server(transport, frame);
        assert!(ran.code != 0 && ran.stdout.is_empty(), "{name}: {ran:?}");
    }
}

#[test]
fn tokio_client_gets_its_answer_through_a_flood() {
    client_gets_its_answer_through_a_flood("tokio");
}

#[test]
fn mio_client_gets_its_answer_through_a_flood() {
    client_gets_its_answer_through_a_flood("mio");
}

#[test]
fn tokio_client_disconnects_from_a_violating_server() {
    client_disconnects_from_a_violating_server("tokio");
}

#[test]
fn mio_client_disconnects_from_a_violating_server() {
    client_disconnects_from_a_violating_server("mio");
}
