//! Tests of a server's handler without a socket: a client's machine and a handler, with two buffers between them.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use blobferry_protocol::{
    BlobId, Config, Deadline, Digest, Oid, PeerError, Phase, Reply, Request, RequestError, RequestId, Slice,
    Tid, Time, TransferEvent, TransferId, TxnId, TxnMeta, UsageError, buffered, client,
};
use blobferry_session::io::ConnectionHandler;
use blobferry_session::server::{Handler, ServerConfig, ServerCore};
use blobferry_store::{MemoryStore, Store, StoreConfig};
use bytes::Bytes;

/// A client with one blob to store, and the events that it received.
struct Pair {
    client: client::Connection,
    handler: Handler,
    woken: Receiver<()>,
    blob: Vec<u8>,
    events: Vec<client::Event>,
    received: Vec<u8>,
    /// Bytes that the handler does not want yet.
    up: Vec<u8>,
}

fn pair(core: &ServerCore) -> Pair {
    let (wake, woken) = mpsc::channel();
    let handler = Handler::new(core, Time::ZERO, move || {
        // The receiver is dropped when the test is over.
        let _ = wake.send(());
    });
    let client = client::Connection::new(Time::ZERO, Config::default(), b"");
    let mut pair = Pair {
        client,
        handler,
        woken,
        blob: Vec::new(),
        events: Vec::new(),
        received: Vec::new(),
        up: Vec::new(),
    };
    pair.until(|event| matches!(event, client::Event::Connected(_)));
    pair
}

fn server() -> (Arc<dyn Store>, ServerCore) {
    server_with(ServerConfig::default().detach_timeout)
}

/// Returns a server that holds detached transactions for this time.
fn server_with(detach_timeout: Duration) -> (Arc<dyn Store>, ServerCore) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
    (store.clone(), ServerCore::new(store, ServerConfig { detach_timeout, ..ServerConfig::default() }))
}

impl Pair {
    /// Moves all bytes, both ways. Returns whether there were any.
    fn exchange(&mut self) -> bool {
        let (mut down, waiting) = (Vec::new(), self.up.len());
        let blob = &self.blob;
        buffered::transmit(&mut self.client, Time::ZERO, &mut self.up, usize::MAX, |slice, into| {
            into.extend_from_slice(&blob[slice.offset as usize..][..slice.len as usize]);
            Ok(())
        });
        self.handler.transmit(Time::ZERO, &mut down, 1 << 20, false);
        let mut moved = self.up.len() > waiting || !down.is_empty();
        while self.handler.wants_input() && !self.up.is_empty() {
            moved = true;
            let rest = self.up.split_off(self.up.len().min(64 << 10));
            let piece = std::mem::replace(&mut self.up, rest);
            self.handler.receive(Time::ZERO, Bytes::from(piece)).unwrap();
        }
        let mut received = (&mut self.events, &mut self.received);
        let event = |received: &mut (&mut Vec<_>, &mut Vec<u8>), _: &mut _, event| received.0.push(event);
        let payload = |received: &mut (&mut Vec<_>, &mut Vec<u8>), _: Slice, at| received.1.extend(&down[at]);
        buffered::receive(&mut self.client, Time::ZERO, &down, &mut received, event, payload).unwrap();
        moved
    }

    /// Waits for an event of the client. Blocks while only the store has something to do.
    fn until(&mut self, wanted: impl Fn(&client::Event) -> bool) -> client::Event {
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return self.events.remove(at);
            }
            if !self.exchange() {
                self.woken.recv().unwrap();
            }
        }
    }

    fn answer(&mut self, id: RequestId) -> Result<Reply, RequestError> {
        match self
            .until(|event| matches!(event, client::Event::Reply { id: answered, .. } if *answered == id))
        {
            client::Event::Reply { result, .. } => result,
            _ => unreachable!("this event was awaited"),
        }
    }

    fn begin(&mut self, name: u8) -> TxnId {
        let txn = TxnId([name; 16]);
        self.client.request(Request::Begin { txn, meta: TxnMeta::default() }).unwrap();
        txn
    }
}

#[test]
fn transaction_with_a_blob_commits_in_one_round_trip() {
    let (store, core) = server();
    let mut pair = pair(&core);
    pair.blob = vec![7; 200_000];
    let digest = Digest(*blake3::hash(&pair.blob).as_bytes());
    let txn = pair.begin(1);
    let size = pair.blob.len() as u64;
    // The client waits for nothing before it sends the commit.
    pair.client.upload(txn, Oid(9), Tid::ZERO, b"record".to_vec(), size, Some(digest)).unwrap();
    let commit = pair.client.request(Request::Commit { txn }).unwrap();
    let Ok(Reply::Finished { tid }) = pair.answer(commit) else { panic!("not committed") };
    assert_eq!(store.load(Oid(9)).unwrap().tid, tid);

    let blob = BlobId { oid: Oid(9), tid };
    pair.client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX }).unwrap();
    pair.until(|event| matches!(event, client::Event::Transfer(TransferEvent::Stopped { .. })));
    assert_eq!(pair.received, pair.blob);
}

#[test]
fn large_records_do_not_block_their_blobs() {
    let (_store, core) = server();
    let mut pair = pair(&core);
    pair.blob = vec![7; 300_000];
    let digest = Digest(*blake3::hash(&pair.blob).as_bytes());
    let txn = pair.begin(1);
    for oid in 1..=12 {
        pair.client.upload(txn, Oid(oid), Tid::ZERO, vec![1; 1 << 20], 300_000, Some(digest)).unwrap();
    }
    let commit = pair.client.request(Request::Commit { txn }).unwrap();
    assert!(matches!(pair.answer(commit), Ok(Reply::Finished { .. })));
}

#[test]
fn too_many_records_waiting_for_blobs_are_refused() {
    let (_store, core) = server();
    let mut pair = pair(&core);
    let txn = pair.begin(1);
    let uploads: Vec<TransferId> = (1..=6)
        .map(|oid| {
            // These blobs are never finished, so their records wait.
            let id = pair.client.upload(txn, Oid(oid), Tid::ZERO, vec![1; 12 << 20], 0, None).unwrap();
            pair.exchange();
            id
        })
        .collect();
    let refused = pair.answer(uploads[5].into());
    assert!(matches!(refused, Err(RequestError::Limit { actual, .. }) if actual == 72 << 20), "{refused:?}");
}

#[test]
fn failed_store_dooms_the_commit_behind_it() {
    let (store, core) = server();
    let mut pair = pair(&core);
    pair.blob = vec![7; 1000];
    let txn = pair.begin(1);
    let good =
        pair.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let wrong = Some(Digest([0; 32]));
    let bad: TransferId = pair.client.upload(txn, Oid(2), Tid::ZERO, vec![2], 1000, wrong).unwrap();
    let commit = pair.client.request(Request::Commit { txn }).unwrap();
    assert_eq!(pair.answer(good), Ok(Reply::Done));
    assert!(matches!(pair.answer(bad.into()), Err(RequestError::Mismatch { .. })));
    assert_eq!(pair.answer(commit), Err(RequestError::Doomed { txn }));
    assert_eq!(store.load(Oid(1)), Err(RequestError::NoSuchObject { oid: Oid(1) }));
    // The transaction leaves no lock behind.
    let txn = pair.begin(2);
    pair.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![3] }).unwrap();
    let commit = pair.client.request(Request::Commit { txn }).unwrap();
    assert!(matches!(pair.answer(commit), Ok(Reply::Finished { .. })));
}

#[test]
fn lost_connection_releases_its_votes() {
    let (_store, core) = server();
    let mut first = pair(&core);
    let txn = first.begin(1);
    first.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let vote = first.client.request(Request::Vote { txn }).unwrap();
    assert_eq!(first.answer(vote), Ok(Reply::Voted));

    let mut second = pair(&core);
    let txn = second.begin(2);
    second.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![2] }).unwrap();
    let vote = second.client.request(Request::Vote { txn }).unwrap();
    drop(first);
    assert_eq!(second.answer(vote), Ok(Reply::Voted));
}

#[test]
fn silent_client_loses_its_votes_and_uploads() {
    let (store, core) = server_with(Duration::ZERO);
    let mut silent = pair(&core);
    let txn = silent.begin(1);
    silent.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let vote = silent.client.request(Request::Vote { txn }).unwrap();
    assert_eq!(silent.answer(vote), Ok(Reply::Voted));
    let other = silent.begin(2);
    // The digest is never sent.
    silent.blob = vec![7; 1000];
    silent.client.upload(other, Oid(2), Tid::ZERO, vec![], 1000, None).unwrap();
    while silent.exchange() {}

    let Config { silence_limit, ping_after, .. } = Config::default();
    silent.handler.handle_timeout(Time(ping_after)).unwrap();
    let ended = silent.handler.handle_timeout(Time(silence_limit));
    assert_eq!(ended, Err(PeerError::Silent { after: silence_limit }));
    drop(silent);
    let mut second = pair(&core);
    let txn = second.begin(3);
    second.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![2] }).unwrap();
    let commit = second.client.request(Request::Commit { txn }).unwrap();
    assert!(matches!(second.answer(commit), Ok(Reply::Finished { .. })));
    // The upload's transaction ends on a thread of its own.
    while store.counts().open > 0 || store.counts().staged_bytes > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn stalled_upload_is_aborted_and_late_bytes_are_ignored() {
    let (store, core) = server();
    let mut pair = pair(&core);
    let txn = pair.begin(1);
    pair.blob = vec![7; 5_000_000];
    let upload = pair.client.upload(txn, Oid(1), Tid::ZERO, vec![], 5_000_000, None).unwrap();
    let digest = Digest(*blake3::hash(&pair.blob).as_bytes());
    while pair.client.finish_blob(upload, digest).is_err() {
        if !pair.exchange() {
            pair.woken.recv().unwrap();
        }
    }
    // The client has sent everything; the end of it is lost on the way.
    let mut lost = Vec::new();
    while pair.client.poll_transmit(Time::ZERO, &mut lost).is_some() {}
    let timeout = Config::default().transfer_timeout;
    let mut now = Time::ZERO;
    let is_answer =
        |event: &client::Event| matches!(event, client::Event::Reply { id, .. } if *id == upload.into());
    while !pair.events.iter().any(is_answer) {
        // The client is alive: it answers pings.
        now = now + timeout;
        pair.handler.receive(now, Bytes::from_static(&[2, 0, 0, 0, 14, 1])).unwrap();
        pair.handler.handle_timeout(now).unwrap();
        while pair.exchange() {}
    }
    let late = RequestError::Deadline { what: Deadline::Transfer, after_ms: 120_000 };
    assert_eq!(pair.answer(upload.into()), Err(late));
    while store.counts().staged_bytes > 0 {
        std::thread::yield_now();
    }
    pair.handler.receive(now, Bytes::from(lost)).unwrap();
    let commit = pair.client.request(Request::Commit { txn });
    assert!(matches!(commit, Err(UsageError::WrongPhase { phase: Phase::Doomed, .. })), "{commit:?}");
}

#[test]
fn commit_is_announced_before_an_answer_reflects_it() {
    let (_store, core) = server();
    let (mut writer, mut reader) = (pair(&core), pair(&core));
    let txn = writer.begin(1);
    writer.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let commit = writer.client.request(Request::Commit { txn }).unwrap();
    let Ok(Reply::Finished { tid }) = writer.answer(commit) else { panic!("not committed") };
    let announced = client::Event::Invalidate { tid, oids: vec![Oid(1)] };
    assert_eq!(writer.events.last(), Some(&announced), "the writer, too, before its own answer");

    let load = reader.client.request(Request::Load { oid: Oid(1) }).unwrap();
    assert!(matches!(reader.answer(load), Ok(Reply::Revision(revision)) if revision.tid == tid));
    assert_eq!(reader.events, [announced]);
}

#[test]
fn stopping_server_finishes_votes_and_begins_nothing() {
    let (store, core) = server();
    let mut pair = pair(&core);
    let txn = pair.begin(1);
    pair.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let vote = pair.client.request(Request::Vote { txn }).unwrap();
    assert_eq!(pair.answer(vote), Ok(Reply::Voted));

    core.stop();
    pair.until(|event| *event == client::Event::Goodbye);
    assert!(!pair.handler.is_finished(), "a transaction waits to be finished");
    let finish = pair.client.request(Request::Finish { txn }).unwrap();
    assert!(matches!(pair.answer(finish), Ok(Reply::Finished { .. })));
    assert!(pair.handler.is_finished());
    assert_eq!(store.load(Oid(1)).unwrap().data, [1]);

    let late = Handler::new(&core, Time::ZERO, || {});
    let client = client::Connection::new(Time::ZERO, Config::default(), b"");
    let (_, woken) = mpsc::channel();
    let (blob, events, received, up) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut late = Pair { client, handler: late, woken, blob, events, received, up };
    let mut hello = Vec::new();
    buffered::transmit(&mut late.client, Time::ZERO, &mut hello, usize::MAX, |_, _| Ok(()));
    late.handler.receive(Time::ZERO, Bytes::from(hello)).unwrap();
    let mut refusal = Vec::new();
    late.handler.transmit(Time::ZERO, &mut refusal, 1 << 20, false);
    assert!(late.handler.is_finished() && late.client.handle_control(Time::ZERO, &refusal).is_err());
}

#[test]
fn connection_during_an_announcement_does_not_miss_it() {
    let (store, core) = server();
    let mut before = pair(&core);
    // A client connects when the commit is announced, and readers do not see it yet.
    let (met, newcomer) = mpsc::channel();
    let at = core.clone();
    let _subscription = store.subscribe(Arc::new(move |tid, _: &[Oid]| {
        let mut newcomer = pair(&at);
        while newcomer.exchange() {}
        let is_it =
            |event: &client::Event| matches!(event, client::Event::Invalidate { tid: at, .. } if *at == tid);
        met.send(newcomer.events.iter().any(is_it)).unwrap();
    }));
    let txn = before.begin(1);
    before.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let commit = before.client.request(Request::Commit { txn }).unwrap();
    assert!(matches!(before.answer(commit), Ok(Reply::Finished { .. })));
    assert!(newcomer.recv().unwrap(), "it was welcomed with an earlier tid, and no announcement");
}
