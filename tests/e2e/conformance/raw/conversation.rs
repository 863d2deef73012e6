//! Every request, sent by a client that was written from the specification.

use super::client::{Client, Downloaded, digest};
use super::decode::{Answer, Entry, Received, Revision};
use super::encode::{Body, Limits, error, message, request};
use crate::conformance::world::{Pair, World};
use crate::support::bytes;

for_every_server!(
    handshake_reports_version_limits_and_last_tid,
    pipelined_transaction_is_answered_in_full,
    every_kind_of_load_returns_committed_data,
    deleted_and_packed_revisions_are_gone,
    blob_is_sent_whole_and_in_ranges,
    conflict_is_resolved_and_voted_again,
    commit_waits_for_an_incomplete_upload,
    invalidation_precedes_commit_answer_and_visibility,
    long_invalidation_is_split_into_several_messages,
    hundred_pipelined_requests_get_one_answer_each,
    goodbye_closes_after_all_answers,
    stopping_server_answers_requests_in_progress,
);

const TXN: [u8; 16] = [1; 16];
const OTHER: [u8; 16] = [2; 16];

fn handshake_reports_version_limits_and_last_tid(pair: &Pair) {
    let world = World::serving(pair, |config| config.connection.limits.transfers = 77);
    let mut first = Client::new(world.address());
    assert_eq!(first.limits, Limits { transfers: 77, ..Limits::DEFAULT });
    let oid = first.new_oid();
    let tid = first.put(TXN, oid, 0, b"record");
    assert_eq!(Client::new(world.address()).last_tid, tid);
    // A client with later versions and credentials is accepted, too.
    let mut newer = Client::connect(world.address(), Limits::DEFAULT);
    newer.send(Body::hello(0, 9, Limits::DEFAULT, b"key"));
    assert!(matches!(newer.receive(), Received::Welcome { version: 1, last_tid, .. } if last_tid == tid));
    // A client with only later versions is refused.
    let mut unsupported = Client::connect(world.address(), Limits::DEFAULT);
    unsupported.send(Body::hello(2, 9, Limits::DEFAULT, b""));
    assert_eq!(unsupported.receive_to_the_end(), [Received::Refuse { refusal: 0, versions: Some((1, 1)) }]);
}

fn pipelined_transaction_is_answered_in_full(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let (record, blob, whole) = (client.new_oid(), client.new_oid(), bytes("blob", 1_000_000));
    let begun = client.submit(request::begin(TXN, b"ann", b"new"));
    let stored = client.submit(request::store(TXN, record, 0, b"a record"));
    let uploaded = client.upload(TXN, blob, 0, &whole);
    let empty = client.upload(TXN, record + 1000, 0, b"");
    let committed = client.submit(request::commit(TXN));
    for id in [begun, stored, uploaded, empty] {
        assert_eq!(client.answer(id), Ok(Answer::Done));
    }
    let Ok(Answer::Finished(tid)) = client.answer(committed) else { panic!("not committed") };
    assert_eq!(client.call(request::outcome(TXN)), Ok(Answer::Outcome(Some(tid))));
    let revision = Revision { tid, next: None, data: b"a record".to_vec(), blob: None };
    assert_eq!(client.call(request::load(record)), Ok(Answer::Revision(revision)));
    let blob_info = Some((1_000_000, digest(&whole)));
    let revision = Revision { tid, next: None, data: b"record".to_vec(), blob: blob_info };
    assert_eq!(client.call(request::load(blob)), Ok(Answer::Revision(revision)));
    let downloaded = client.download((blob, tid), 0, u64::MAX).unwrap();
    assert!(downloaded == Downloaded { from: 0, size: 1_000_000, digest: digest(&whole), bytes: whole });
    let downloaded = client.download((record + 1000, tid), 0, u64::MAX).unwrap();
    assert_eq!(downloaded, Downloaded { from: 0, size: 0, bytes: Vec::new(), digest: digest(b"") });
}

fn every_kind_of_load_returns_committed_data(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    client.done(request::begin(TXN, b"ann", b"first"));
    let uploaded = client.upload(TXN, oid, 0, b"blob");
    assert_eq!(client.answer(uploaded), Ok(Answer::Done));
    // Vote and finish take two round trips.
    assert_eq!(client.call(request::vote(TXN)), Ok(Answer::Voted));
    let Ok(Answer::Finished(first)) = client.call(request::finish(TXN)) else { panic!("not finished") };
    let second = client.put(OTHER, oid, first, b"second");
    assert!(first < second);
    let blob = Some((4, digest(b"blob")));
    let old = Revision { tid: first, next: Some(second), data: b"record".to_vec(), blob };
    let new = Revision { tid: second, next: None, data: b"second".to_vec(), blob: None };
    let answers = [
        (request::load(oid), Answer::Revision(new.clone())),
        (request::load_serial(oid, first), Answer::Revision(old.clone())),
        (request::load_before(oid, second), Answer::RevisionBefore(Some(old))),
        (request::load_before(oid, u64::MAX), Answer::RevisionBefore(Some(new))),
        (request::load_before(oid, first), Answer::RevisionBefore(None)),
        (request::outcome([9; 16]), Answer::Outcome(None)),
    ];
    for (request, answer) in answers {
        assert_eq!(client.call(request), Ok(answer));
    }
    let (user, description) = (b"ann".to_vec(), b"first".to_vec());
    let entry = Entry { tid: first, user, description, size: Some(6), blob };
    let Ok(Answer::History(history)) = client.call(request::history(oid, 10)) else { panic!("no history") };
    assert_eq!((history.len(), history[0].tid, &history[1]), (2, second, &entry));
    let Ok(Answer::History(newest)) = client.call(request::history(oid, 1)) else { panic!("no history") };
    assert_eq!(newest, history[..1]);
    assert_eq!(client.counter("commits"), 2);
    let Ok(Answer::Oids { first, count }) = client.call(request::new_oids(16)) else { panic!("no oids") };
    assert!(first > oid && (1..=16).contains(&count));
}

fn deleted_and_packed_revisions_are_gone(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let (oid, blob) = client.put_blob(TXN, &bytes("blob", 100_000));
    client.done(request::begin(OTHER, b"", b""));
    client.done(request::delete(OTHER, oid, blob));
    client.done(request::store(OTHER, oid + 1000, 0, b"taken back"));
    client.done(request::delete(OTHER, oid + 1000, 0));
    let tid = client.commit(OTHER);
    assert_eq!(client.refused(request::load(oid)).ints, [oid]);
    assert_eq!(client.refused(request::load(oid + 1000)).ints, [oid + 1000]);
    assert_eq!(client.download((oid, blob), 0, u64::MAX).unwrap().size, 100_000, "its history is kept");
    let Ok(Answer::Packed([_, 1, 100_000])) = client.call(request::pack(tid + 1)) else {
        panic!("not packed")
    };
    assert_eq!(client.download((oid, blob), 0, u64::MAX).unwrap_err().ints, [oid, blob]);
}

fn blob_is_sent_whole_and_in_ranges(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    // One blob is kept in the database, the other in a file.
    for (n, size) in [(3, 1000), (4, 300_000)] {
        let whole = bytes("blob", size);
        let blob = client.put_blob([n; 16], &whole);
        let size = size as u64;
        for (from, upto) in [(0, size), (0, 1), (128, 999), (500, u64::MAX), (size, u64::MAX), (7, 7)] {
            let part = client.download(blob, from, upto).unwrap();
            assert!(part.bytes == whole[from as usize..upto.min(size) as usize], "{from}..{upto}");
            assert_eq!((part.size, part.digest), (size, digest(&whole)), "size and digest of the whole blob");
        }
    }
}

fn conflict_is_resolved_and_voted_again(pair: &Pair) {
    let world = World::new(pair);
    let (mut client, mut other) = (Client::new(world.address()), Client::new(world.address()));
    let oid = client.new_oid();
    let base = client.put([3; 16], oid, 0, b"base");
    client.begin_and_store(TXN, oid, base, b"mine");
    let committed = other.put(OTHER, oid, base, b"theirs");
    let conflicts = Ok(Answer::Conflicts(vec![[oid, committed, base]]));
    assert_eq!(client.call(request::vote(TXN)), conflicts);
    assert_eq!(client.call(request::commit(TXN)), conflicts);
    client.done(request::store(TXN, oid, committed, b"both"));
    assert_eq!(client.call(request::vote(TXN)), Ok(Answer::Voted));
    assert!(matches!(client.call(request::finish(TXN)), Ok(Answer::Finished(tid)) if tid > committed));
    // A deleted or unknown object has tid 0.
    client.begin_and_store([4; 16], oid + 1000, base, b"mine");
    let conflicts = Ok(Answer::Conflicts(vec![[oid + 1000, 0, base]]));
    assert_eq!(client.call(request::commit([4; 16])), conflicts);
}

fn commit_waits_for_an_incomplete_upload(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let (oid, whole) = (client.new_oid(), bytes("blob", 100_000));
    client.done(request::begin(TXN, b"", b""));
    let transfer = client.start_upload(TXN, oid, 0, 100_000);
    client.send_payload(transfer, 0, &whole[..50_000]);
    let committed = client.submit(request::commit(TXN));
    // Later requests are answered first, and a cancellation has no effect.
    client.send(Body::new(message::CANCEL).int(committed));
    assert_eq!(client.refused(request::load(oid)).ints, [oid]);
    client.send_payload(transfer, 50_000, &whole[50_000..]);
    client.send(Body::blob_stop(transfer, digest(&whole)));
    let Ok(Answer::Finished(tid)) = client.answer(committed) else { panic!("not committed") };
    assert_eq!(client.answer(transfer), Ok(Answer::Done));
    assert!(client.download((oid, tid), 0, u64::MAX).unwrap().bytes == whole);
}

fn invalidation_precedes_commit_answer_and_visibility(pair: &Pair) {
    let world = World::new(pair);
    let (mut writer, mut reader) = (Client::new(world.address()), Client::new(world.address()));
    let oid = writer.new_oid();
    let mut tids = vec![0];
    for n in 1..20 {
        let tid = writer.put([n; 16], oid, tids[usize::from(n) - 1], &[n]);
        assert_eq!(writer.invalidations.last(), Some(&(tid, vec![oid])), "the committer is notified, too");
        tids.push(tid);
        let Ok(Answer::Revision(revision)) = reader.call(request::load(oid)) else { panic!("no revision") };
        assert_eq!(
            (revision.tid, &revision.data[..]),
            (tid, &[n][..]),
            "an acknowledged commit is visible to all"
        );
        assert_eq!(reader.invalidations.last(), Some(&(tid, vec![oid])));
    }
    let all: Vec<_> = tids[1..].iter().map(|tid| (*tid, vec![oid])).collect();
    assert_eq!((writer.invalidations, reader.invalidations), (all.clone(), all));
}

fn long_invalidation_is_split_into_several_messages(pair: &Pair) {
    let world = World::new(pair);
    let small = Limits { frame: 4096, ..Limits::DEFAULT };
    let mut client = Client::with(world.address(), small);
    // These oids take four bytes each on the wire.
    let (first, count) = (1 << 21, 3000);
    client.submit(request::begin(TXN, b"", b""));
    for oid in first..first + count {
        client.submit(request::store(TXN, oid, 0, b""));
    }
    let tid = client.commit(TXN);
    assert!(client.invalidations.len() > 1);
    assert!(client.invalidations.iter().all(|(of, _)| *of == tid));
    let mut oids: Vec<u64> = client.invalidations.into_iter().flat_map(|(_, oids)| oids).collect();
    oids.sort_unstable();
    assert!(oids.into_iter().eq(first..first + count));
}

fn hundred_pipelined_requests_get_one_answer_each(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    let tid = client.put(TXN, oid, 0, b"record");
    let ids: Vec<u64> = (0..100).map(|n| client.submit(request::load(oid + n % 2))).collect();
    for (n, id) in ids.into_iter().enumerate().rev() {
        match client.answer(id) {
            Ok(Answer::Revision(revision)) if n % 2 == 0 => assert_eq!(revision.tid, tid),
            Err(error) if n % 2 == 1 => assert_eq!(error.ints, [oid + 1]),
            other => panic!("{other:?}"),
        }
    }
    // No message is left over: the next one is the answer to the ping.
    client.send(Body::new(message::PING).int(u64::MAX));
    assert_eq!(client.receive(), Received::Pong { nonce: u64::MAX });
}

fn goodbye_closes_after_all_answers(pair: &Pair) {
    let world = World::new(pair);
    let mut idle = Client::new(world.address());
    idle.send(Body::new(message::GOODBYE));
    idle.receive_to_the_end();
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    client.begin_and_store(TXN, oid, 0, b"record");
    assert_eq!(client.call(request::vote(TXN)), Ok(Answer::Voted));
    client.send(Body::new(message::GOODBYE));
    assert_eq!(client.refused(request::load(oid)).number, error::STOPPING);
    assert_eq!(client.call(request::outcome(OTHER)), Ok(Answer::Outcome(None)));
    let Ok(Answer::Finished(tid)) = client.call(request::finish(TXN)) else { panic!("not finished") };
    client.receive_to_the_end();
    assert_eq!(Client::new(world.address()).last_tid, tid);
}

fn stopping_server_answers_requests_in_progress(pair: &Pair) {
    let mut world = World::serving(pair, |config| config.grace = std::time::Duration::from_secs(600));
    let (mut voter, mut loader) = (
        Client::new(world.address()),
        Client::with(world.address(), Limits { transfer_window: 1000, ..Limits::DEFAULT }),
    );
    let whole = bytes("blob", 5000);
    let blob = voter.put_blob(OTHER, &whole);
    voter.begin_and_store(TXN, blob.0, blob.1, b"new");
    assert_eq!(voter.call(request::vote(TXN)), Ok(Answer::Voted));
    let id = loader.submit(request::send_blob(blob.0, blob.1, 0, u64::MAX));
    while !matches!(loader.receive(), Received::BlobStart { .. }) {}
    let server = world.take_server();
    let stopping = std::thread::spawn(move || server.stop());
    while voter.receive() != Received::Goodbye {}
    assert_eq!(voter.refused(request::load(blob.0)).number, error::STOPPING);
    assert!(matches!(voter.call(request::finish(TXN)), Ok(Answer::Finished(_))));
    voter.receive_to_the_end();
    assert!(!stopping.is_finished());
    let (mut bytes, mut stopped) = (Vec::<u8>::new(), false);
    while !stopped {
        match loader.receive() {
            Received::BlobChunk { offset, payload, .. } => {
                bytes.extend(&payload);
                loader.grant(id, offset + payload.len() as u64);
            }
            Received::BlobStop { digest: of, .. } => {
                assert_eq!(of, digest(&whole));
                stopped = true;
            }
            Received::Goodbye | Received::Invalidate { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(bytes == whole);
    // The server has sent everything; further messages do no harm.
    loader.grant_received();
    loader.receive_to_the_end();
    stopping.join().unwrap();
}
