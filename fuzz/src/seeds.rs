//! Seed inputs, so that fuzzing starts with interesting ones: messages of every kind, real streams
//! between two machines, and lists of acts.

use blobferry_protocol::testing::digest_of;
use blobferry_protocol::{
    BlobId, Limits, Message, Oid, Reply, Request, RequestId, Tid, Time, TransferId, buffered, client,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::message_gen;

/// Returns the seed inputs of a target. They are the same every time.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let messages = many(&mut runner, 400, &any::<Message>());
    match target {
        "messages" => messages.iter().map(|message| message_gen::frame(message)[4..].to_vec()).collect(),
        "frames" => {
            let runs =
                messages.chunks(4).map(|run| run.iter().flat_map(message_gen::frame).collect::<Vec<u8>>());
            let all = runs.chain(longest()).chain([upload(), download()]);
            all.zip(0_u8..).flat_map(|(stream, n)| behind(&[&[n % 4], &[(n % 4) | 12]], &stream)).collect()
        }
        "server" => with_acts(&mut runner, behind(&[&[16, 7], &[17, 200], &[18, 1]], &upload())),
        "client" => with_acts(&mut runner, behind(&[&[16, 7], &[17, 200], &[18, 1]], &download())),
        "split" => {
            let up = behind(&[&[4, 1, 2, 3, 4], &[5, 9, 50, 1, 7]], &upload());
            let down = behind(&[&[6, 1, 2, 3, 4], &[7, 9, 50, 1, 7]], &download());
            with_acts(&mut runner, [up, down].concat())
        }
        _ => with_acts(&mut runner, Vec::new()),
    }
}

fn many<T>(runner: &mut TestRunner, n: usize, strategy: &impl Strategy<Value = T>) -> Vec<T> {
    (0..n).filter_map(|_| Some(strategy.new_tree(runner).ok()?.current())).collect()
}

fn behind(heads: &[&[u8]], stream: &[u8]) -> Vec<Vec<u8>> {
    heads.iter().map(|head| [head, stream].concat()).collect()
}

fn with_acts(runner: &mut TestRunner, mut seeds: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let acts = proptest::collection::vec(prop_oneof![0_u8..32, any::<u8>()], 8..300);
    seeds.extend(many(runner, 300, &acts));
    seeds
}

/// Returns the beginnings of frames of the greatest allowed length, and of frames one byte longer.
fn longest() -> Vec<Vec<u8>> {
    let len = message_gen::tight_limits().frame;
    let begins = |(len, kind): (u32, u8)| [&len.to_le_bytes()[..], &[kind, 1, 1]].concat();
    [(len, 3), (len + 1, 3), (len, 13), (len + 1, 13)].map(begins).into()
}

/// Returns the stream of a client that stores blobs with ample credit.
fn upload() -> Vec<u8> {
    let mut client =
        client::Connection::new(Time::ZERO, message_gen::config(message_gen::tight_limits()), b"key");
    let mut stream = transmitted(&mut client);
    let roomy = Limits { transfer_window: 1000, connection_window: 5000, ..message_gen::tight_limits() };
    client.handle_control(Time::ZERO, &message_gen::frame(&message_gen::welcome(roomy))).unwrap();
    let txn = blobferry_protocol::TxnId([0; 16]);
    client.request(Request::Begin { txn, meta: Default::default() }).unwrap();
    for size in [0_u64, 20, 100] {
        let digest = digest_of(&vec![7; size as usize]);
        client.upload(txn, Oid(size), Tid(3), vec![1, 2], size, Some(digest)).unwrap();
        stream.extend(transmitted(&mut client));
    }
    client.request(Request::Commit { txn }).unwrap();
    stream.extend(transmitted(&mut client));
    stream
}

/// Returns the stream of a server that answers three downloads and one other request.
fn download() -> Vec<u8> {
    let mut server = message_gen::server(message_gen::tight_limits());
    let mut stream = message_gen::frame(&message_gen::welcome(message_gen::tight_limits()));
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    for id in 1..=3 {
        let request = Request::SendBlob { blob, from: 0, upto: u64::MAX };
        let request = Message::Request { id: RequestId(id), request };
        server.handle_control(Time::ZERO, &message_gen::frame(&request)).unwrap();
        let size = id * 8;
        server.start_blob(TransferId(id), size, digest_of(&vec![7; size as usize])).unwrap();
        server.invalidate(Tid(id), &[Oid(id)]).unwrap();
        stream.extend(transmitted(&mut server));
    }
    let request = Message::Request { id: RequestId(4), request: Request::Status };
    server.handle_control(Time::ZERO, &message_gen::frame(&request)).unwrap();
    server.reply(RequestId(4), Ok(Reply::Status(vec![("a".into(), 1)]))).unwrap();
    stream.extend(transmitted(&mut server));
    stream
}

/// Returns all that a machine sends, with its payload.
fn transmitted<H: blobferry_protocol::connection::Side>(
    machine: &mut blobferry_protocol::connection::Connection<H>,
) -> Vec<u8> {
    let mut stream = Vec::new();
    buffered::transmit(machine, Time::ZERO, &mut stream, usize::MAX, |slice, into| {
        into.resize(into.len() + slice.len as usize, 7);
        Ok(())
    });
    stream
}
