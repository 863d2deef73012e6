//! Servers that violate the protocol, lie or disconnect.
//!
//! The client reports the error and its cache shows no part of the blob. Afterwards the same cache
//! gets the blob from a good server.

use std::io::Write;
use std::time::Duration;

use blobferry_cache::{CacheError, WriteError};
use blobferry_protocol::{BlobId, RequestError, Tid};
use blobferry_session::client::{BlobSource, CallError, ClientConfig, ConnectError};

use super::client::digest;
use super::encode::{Body, Limits, error, message, request};
use super::server::{Caller, Server};
use crate::conformance::world::{Pair, World};
use crate::support::bytes;

for_every_client!(
    non_blobferry_server_fails_the_handshake,
    silent_server_times_out,
    refusal_reason_is_reported,
    blob_with_wrong_digest_is_an_error_and_not_kept,
    truncated_blob_is_an_error_and_not_kept,
    blob_that_violates_the_protocol_disconnects,
    blob_aborted_by_the_server_fails_with_its_reason,
    blob_larger_than_the_disk_fails_before_its_bytes,
    answer_that_violates_the_protocol_disconnects,
    upload_answered_too_early_is_not_stored,
);

/// A good server with a blob, and a cache without it.
struct Good {
    world: World,
    blob: BlobId,
    whole: Vec<u8>,
}

impl Good {
    fn new(pair: &Pair) -> Good {
        let (world, whole) = (World::new(pair), bytes("blob", 300_000));
        let blob = world.client("writer").store(BlobSource::bytes(whole.clone()));
        Good { world, blob, whole }
    }

    /// Loads the blob from a bad server that answers with `send` after the handshake; returns the
    /// error.
    fn load_from(&self, send: impl Fn(&mut Caller, u64) + Send + 'static) -> CallError {
        let bad = Server::after_welcome(move |caller| {
            let id = caller.request();
            send(caller, id);
        });
        let client = self.world.client_at(&bad.address, "cache");
        let error = client.load_blob(self.blob).unwrap_err();
        assert_eq!(self.world.cached("cache").len(), 0, "{error}");
        error
    }

    /// Checks that the blob can be loaded from the good server after a failure.
    fn load_from_good_server(&self) {
        let cached = self.world.client("cache").load_blob(self.blob).unwrap();
        assert!(std::fs::read(cached.path()).unwrap() == self.whole);
    }
}

/// Asserts that a call failed because the connection was closed.
fn assert_disconnected(error: &CallError) {
    assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
}

fn non_blobferry_server_fails_the_handshake(pair: &Pair) {
    let world = World::new(pair);
    let unknown_version = Body::new(message::WELCOME).int(2).limits(Limits::DEFAULT).int(0).frame();
    let no_limits = Body::welcome(Limits { chunk: 0, ..Limits::DEFAULT }, 0).frame();
    let garbage = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"220 mail.example.org ESMTP\r\n".to_vec(),
        vec![0xff; 100_000],
        vec![0; 4],
        u32::MAX.to_le_bytes().to_vec(),
        unknown_version,
        no_limits,
        Body::new(message::PING).int(1).frame(),
        Body::new(message::GOODBYE).frame(),
        Body::default_hello().frame(),
        Vec::new(),
    ];
    for bytes in garbage {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).into_owned();
        let bad = Server::new(move |caller| caller.write(&bytes));
        let lost = world.connect(&bad.address, world.cache("cache"), ClientConfig::default());
        assert!(matches!(lost, Err(ConnectError::Handshake { .. })), "{shown:?}: {lost:?}");
    }
}

fn silent_server_times_out(pair: &Pair) {
    let world = World::new(pair);
    let bad = Server::new(Caller::wait_for_the_end);
    let mut config = ClientConfig::default();
    config.connection.handshake_timeout = Duration::from_millis(10);
    let Err(ConnectError::Handshake { source: CallError::Disconnected { reason }, .. }) =
        world.connect(&bad.address, world.cache("cache"), config)
    else {
        panic!("the client connected")
    };
    assert!(reason.contains("in time"), "{reason}");
    // A server that falls silent later is also noticed: it does not answer pings.
    let bad = Server::after_welcome(Caller::wait_for_the_end);
    let mut config = ClientConfig::default();
    config.connection.ping_after = Duration::from_millis(5);
    config.connection.silence_limit = Duration::from_millis(10);
    let client = world.connect(&bad.address, world.cache("cache"), config).unwrap();
    assert_disconnected(&client.status().unwrap_err());
}

fn refusal_reason_is_reported(pair: &Pair) {
    let world = World::new(pair);
    let refusals: [(&[u64], &str); 4] =
        [(&[0, 7, 9], "versions 7 to 9"), (&[1], "credentials"), (&[2], "no room"), (&[3], "is stopping")];
    for (fields, expected) in refusals {
        let refusal = fields.iter().fold(Body::new(message::REFUSE), |body, field| body.int(*field));
        let bad = Server::new(move |caller| {
            caller.receive();
            caller.send(refusal.clone());
        });
        let refused = world.connect(&bad.address, world.cache("cache"), ClientConfig::default());
        let Err(ConnectError::Handshake { source: CallError::Disconnected { reason }, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert!(reason.contains(expected), "{reason}");
    }
}

fn blob_with_wrong_digest_is_an_error_and_not_kept(pair: &Pair) {
    let good = Good::new(pair);
    let mut damaged = good.whole.clone();
    damaged[150_000] ^= 1;
    let (size, right) = (damaged.len() as u64, digest(&good.whole));
    let error = good.load_from(move |caller, id| {
        caller.send(Body::blob_start(id, 0, size, size));
        for (n, part) in damaged.chunks(100_000).enumerate() {
            caller.chunk(id, n as u64 * 100_000, part);
        }
        caller.send(Body::blob_stop(id, right));
        caller.wait_for_the_end();
    });
    assert!(
        matches!(error, CallError::Cache(CacheError::Write { source: WriteError::Digest { .. }, .. })),
        "{error:?}"
    );
    // The digest of an empty blob is checked, too.
    let error = good.load_from(move |caller, id| {
        caller.send(Body::blob_start(id, 0, 0, 0));
        caller.send(Body::blob_stop(id, right));
        caller.wait_for_the_end();
    });
    assert!(matches!(error, CallError::Cache(CacheError::Write { .. })), "{error:?}");
    good.load_from_good_server();
}

fn truncated_blob_is_an_error_and_not_kept(pair: &Pair) {
    let good = Good::new(pair);
    let (size, whole) = (good.whole.len() as u64, good.whole.clone());
    // Without a start, after the start, between two chunks, within a chunk, and without the stop.
    for sent in [None, Some(0), Some(100_000), Some(150_000), Some(300_000)] {
        let whole = whole.clone();
        let error = good.load_from(move |caller, id| {
            let Some(sent) = sent else { return };
            caller.send(Body::blob_start(id, 0, size, size));
            let mut offset = 0;
            while offset < sent {
                let len = 100_000.min(whole.len() - offset);
                caller.send(Body::blob_chunk(id, offset as u64, len as u64));
                caller.write(&whole[offset..sent.min(offset + len)]);
                offset += len;
            }
        });
        assert_disconnected(&error);
    }
    good.load_from_good_server();
}

fn blob_that_violates_the_protocol_disconnects(pair: &Pair) {
    let good = Good::new(pair);
    let size = good.whole.len() as u64;
    let violations: [fn(&mut Caller, u64, u64); 13] = [
        // A blob that is shorter than announced.
        |caller, id, _| caller.send(Body::blob_stop(id, [0; 32])),
        // A longer one.
        |caller, id, size| caller.chunk(id, 0, &vec![0; size as usize + 1]),
        // A chunk at the wrong offset, and an empty chunk.
        |caller, id, _| caller.chunk(id, 1, &[0; 10]),
        |caller, id, _| caller.send(Body::blob_chunk(id, 0, 0)),
        // Messages of another transfer.
        |caller, id, _| caller.chunk(id + 1, 0, &[0; 10]),
        |caller, id, _| caller.send(Body::blob_stop(id + 1, [0; 32])),
        |caller, id, _| caller.send(Body::blob_abort(id + 1, error::CANCELLED)),
        // A second start.
        |caller, id, size| caller.send(Body::blob_start(id, 0, size, size)),
        // An answer in addition to the transfer.
        |caller, id, _| caller.send(Body::new(message::REPLY).ints([id, 1, error::CANCELLED])),
        |caller, id, _| caller.send(Body::new(message::REPLY).ints([id, 0, 0])),
        // A chunk beyond the limit, and one of 4 GiB.
        |caller, id, _| caller.send(Body::blob_chunk(id, 0, (256 << 10) + 1)),
        |caller, id, _| caller.send(Body::blob_chunk(id, 0, u32::MAX.into())),
        // A frame of 4 GiB.
        |caller, _, _| caller.write(&[0xff; 1000]),
    ];
    for violation in violations {
        assert_disconnected(&good.load_from(move |caller, id| {
            caller.send(Body::blob_start(id, 0, size, size));
            violation(caller, id, size);
            caller.wait_for_the_end();
        }));
    }
    let starts = [(1, size, size), (0, size - 1, size), (0, size + 1, size), (size, 0, size)];
    for (from, end, size) in starts {
        assert_disconnected(&good.load_from(move |caller, id| {
            caller.send(Body::blob_start(id, from, end, size));
            caller.wait_for_the_end();
        }));
    }
    good.load_from_good_server();
}

fn blob_aborted_by_the_server_fails_with_its_reason(pair: &Pair) {
    let good = Good::new(pair);
    let (size, whole) = (good.whole.len() as u64, good.whole.clone());
    let error = good.load_from(move |caller, id| {
        caller.send(Body::blob_start(id, 0, size, size));
        caller.chunk(id, 0, &whole[..200_000]);
        // The server cannot read the rest: it sends zeros and an abort.
        caller.chunk(id, 200_000, &[0; 100_000]);
        caller.send(Body::blob_abort(id, error::SOURCE).bytes(b"the disk is broken"));
        caller.wait_for_the_end();
    });
    let CallError::Refused(RequestError::Source { detail }) = &error else { panic!("{error:?}") };
    assert_eq!(detail, "the disk is broken");
    good.load_from_good_server();
}

fn blob_larger_than_the_disk_fails_before_its_bytes(pair: &Pair) {
    let good = Good::new(pair);
    // The connection stays usable: the next request is answered.
    let bad = Server::after_welcome(|caller| {
        let id = caller.request();
        caller.send(Body::blob_start(id, 0, 1 << 60, 1 << 60));
        // The cancellation and the next request arrive in either order.
        let mut messages = [caller.receive().unwrap(), caller.receive().unwrap()];
        messages.sort();
        let (request, cancel) = (&messages[0], &messages[1]);
        assert_eq!(cancel, Body::new(message::CANCEL).int(id).as_bytes());
        caller.send(Body::blob_abort(id, error::CANCELLED));
        let next = id + 1;
        assert_eq!(request, Body::numbered(next, &request::status()).as_bytes());
        caller.send(Body::new(message::REPLY).ints([next, 0, 9, 0]));
        caller.wait_for_the_end();
    });
    let client = good.world.client_at(&bad.address, "cache");
    let error = client.load_blob(good.blob).unwrap_err();
    assert!(
        matches!(
            error,
            CallError::Cache(CacheError::Write {
                source: WriteError::NoSpace { .. } | WriteError::Io { .. },
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(client.status().unwrap(), []);
    assert_eq!(good.world.cached("cache").len(), 0);
    drop(client);
    good.load_from_good_server();
}

fn answer_that_violates_the_protocol_disconnects(pair: &Pair) {
    let world = World::new(pair);
    // Answers to a request for the server's counters.
    let answers: [fn(u64) -> Vec<u8>; 9] = [
        // A result of another kind.
        |id| Body::new(message::REPLY).ints([id, 0, 0]).frame(),
        // An answer to an unknown request.
        |id| Body::new(message::REPLY).ints([id + 1, 0, 9, 0]).frame(),
        // A list with a huge length.
        |id| Body::new(message::REPLY).ints([id, 0, 9, 1 << 40]).frame(),
        |id| Body::new(message::REPLY).ints([id, 0, 9, 1 << 19]).frame(),
        // Text that is not UTF-8.
        |id| Body::new(message::REPLY).ints([id, 0, 9, 1]).bytes(&[0xff]).int(1).frame(),
        // A truncated error.
        |id| Body::new(message::REPLY).ints([id, 1, 19]).frame(),
        // Bytes left over.
        |id| Body::new(message::REPLY).ints([id, 0, 9, 0, 0]).frame(),
        // A transfer instead of an answer.
        |id| Body::blob_start(id, 0, 1, 1).frame(),
        // A second welcome.
        |_| Body::welcome(Limits::DEFAULT, 0).frame(),
    ];
    for answer in answers {
        let bad = Server::after_welcome(move |caller| {
            let id = caller.request();
            caller.write(&answer(id));
            caller.wait_for_the_end();
        });
        let client = world.client_at(&bad.address, "cache");
        let invalidations = client.invalidations();
        assert_disconnected(&client.status().unwrap_err());
        assert_eq!(invalidations.count(), 0, "the iterator has ended");
    }
}

fn upload_answered_too_early_is_not_stored(pair: &Pair) {
    let world = World::new(pair);
    // The client's file must remain for another attempt.
    let file = world.path("file");
    std::fs::File::create(&file).unwrap().write_all(&bytes("file", 3_000_000)).unwrap();
    let bad = Server::after_welcome(|caller| {
        let begin = caller.request();
        caller.send(Body::new(message::REPLY).ints([begin, 0, 0]));
        let store = caller.request();
        caller.send(Body::new(message::REPLY).ints([store, 0, 0]));
        caller.wait_for_the_end();
    });
    let client = world.client_at(&bad.address, "cache");
    let mut transaction = client.begin();
    let oid = blobferry_protocol::Oid(1);
    let stored = transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::copied(&file));
    assert_disconnected(&stored.unwrap_err());
    transaction.commit().unwrap_err();
    drop((transaction, client));
    assert_eq!(world.cached("cache").len(), 0);
    assert!(world.client("cache").store(BlobSource::moved(&file)).tid > Tid::ZERO);
}
