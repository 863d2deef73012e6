//! A server's conversation without a socket: a client's machine and a session, with two buffers between them.

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

/// A client with one blob to store, and what it was told.
struct Pair {
    client: client::Connection,
    session: Handler,
    woken: Receiver<()>,
    blob: Vec<u8>,
    told: Vec<client::Event>,
    received: Vec<u8>,
    /// What the session has no room for yet.
    up: Vec<u8>,
}

fn pair(service: &ServerCore) -> Pair {
    let (wake, woken) = mpsc::channel();
    let session = Handler::new(service, Time::ZERO, move || {
        // Nobody listens any more when the test is over.
        let _ = wake.send(());
    });
    let client = client::Connection::new(Time::ZERO, Config::default(), b"");
    let mut pair = Pair {
        client,
        session,
        woken,
        blob: Vec::new(),
        told: Vec::new(),
        received: Vec::new(),
        up: Vec::new(),
    };
    pair.until(|event| matches!(event, client::Event::Connected(_)));
    pair
}

fn service() -> (Arc<dyn Store>, ServerCore) {
    service_that_keeps(ServerConfig::default().detach_timeout)
}

/// One that keeps transactions without a connection for so long.
fn service_that_keeps(detach_timeout: Duration) -> (Arc<dyn Store>, ServerCore) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
    (store.clone(), ServerCore::new(store, ServerConfig { detach_timeout, ..ServerConfig::default() }))
}

impl Pair {
    /// Moves what there is to move, both ways; whether anything was.
    fn exchange(&mut self) -> bool {
        let (mut down, waiting) = (Vec::new(), self.up.len());
        let blob = &self.blob;
        buffered::transmit(&mut self.client, Time::ZERO, &mut self.up, usize::MAX, |slice, into| {
            into.extend_from_slice(&blob[slice.offset as usize..][..slice.len as usize]);
            Ok(())
        });
        self.session.transmit(Time::ZERO, &mut down, 1 << 20, false);
        let mut moved = self.up.len() > waiting || !down.is_empty();
        while self.session.wants_input() && !self.up.is_empty() {
            moved = true;
            let rest = self.up.split_off(self.up.len().min(64 << 10));
            let piece = std::mem::replace(&mut self.up, rest);
            self.session.receive(Time::ZERO, Bytes::from(piece)).unwrap();
        }
        let mut told = (&mut self.told, &mut self.received);
        let event = |told: &mut (&mut Vec<_>, &mut Vec<u8>), _: &mut _, event| told.0.push(event);
        let payload = |told: &mut (&mut Vec<_>, &mut Vec<u8>), _: Slice, at| told.1.extend(&down[at]);
        buffered::receive(&mut self.client, Time::ZERO, &down, &mut told, event, payload).unwrap();
        moved
    }

    /// Goes on until the client is told what is waited for; blocks while only the store has something to do.
    fn until(&mut self, wanted: impl Fn(&client::Event) -> bool) -> client::Event {
        loop {
            if let Some(at) = self.told.iter().position(&wanted) {
                return self.told.remove(at);
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
            _ => unreachable!("that was waited for"),
        }
    }

    fn begin(&mut self, name: u8) -> TxnId {
        let txn = TxnId([name; 16]);
        self.client.request(Request::Begin { txn, meta: TxnMeta::default() }).unwrap();
        txn
    }
}

#[test]
fn a_transaction_with_a_blob_is_committed_in_one_round_trip() {
    let (store, service) = service();
    let mut pair = pair(&service);
    pair.blob = vec![7; 200_000];
    let digest = Digest(*blake3::hash(&pair.blob).as_bytes());
    let txn = pair.begin(1);
    let size = pair.blob.len() as u64;
    // Nothing is waited for before the commit is on its way.
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
fn large_records_do_not_keep_the_blobs_behind_them_from_arriving() {
    let (_store, service) = service();
    let mut pair = pair(&service);
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
fn more_records_than_can_wait_for_their_blobs_are_refused() {
    let (_store, service) = service();
    let mut pair = pair(&service);
    let txn = pair.begin(1);
    let uploads: Vec<TransferId> = (1..=6)
        .map(|oid| {
            // Nobody finishes these blobs: their records wait.
            let id = pair.client.upload(txn, Oid(oid), Tid::ZERO, vec![1; 12 << 20], 0, None).unwrap();
            pair.exchange();
            id
        })
        .collect();
    let refused = pair.answer(uploads[5].into());
    assert!(matches!(refused, Err(RequestError::Limit { actual, .. }) if actual == 72 << 20), "{refused:?}");
}

#[test]
fn a_store_that_fails_keeps_a_commit_behind_it_from_happening() {
    let (store, service) = service();
    let mut pair = pair(&service);
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
    // And it leaves no lock behind.
    let txn = pair.begin(2);
    pair.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![3] }).unwrap();
    let commit = pair.client.request(Request::Commit { txn }).unwrap();
    assert!(matches!(pair.answer(commit), Ok(Reply::Finished { .. })));
}

#[test]
fn a_connection_that_breaks_gives_its_votes_up() {
    let (_store, service) = service();
    let mut first = pair(&service);
    let txn = first.begin(1);
    first.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let vote = first.client.request(Request::Vote { txn }).unwrap();
    assert_eq!(first.answer(vote), Ok(Reply::Voted));

    let mut second = pair(&service);
    let txn = second.begin(2);
    second.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![2] }).unwrap();
    let vote = second.client.request(Request::Vote { txn }).unwrap();
    drop(first);
    assert_eq!(second.answer(vote), Ok(Reply::Voted));
}

#[test]
fn a_client_that_falls_silent_gives_its_votes_up_and_its_uploads() {
    let (store, service) = service_that_keeps(Duration::ZERO);
    let mut silent = pair(&service);
    let txn = silent.begin(1);
    silent.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let vote = silent.client.request(Request::Vote { txn }).unwrap();
    assert_eq!(silent.answer(vote), Ok(Reply::Voted));
    let other = silent.begin(2);
    // Only the head of it comes: there is no digest.
    silent.blob = vec![7; 1000];
    silent.client.upload(other, Oid(2), Tid::ZERO, vec![], 1000, None).unwrap();
    while silent.exchange() {}

    let Config { silence_limit, ping_after, .. } = Config::default();
    silent.session.handle_timeout(Time(ping_after)).unwrap();
    let ended = silent.session.handle_timeout(Time(silence_limit));
    assert_eq!(ended, Err(PeerError::Silent { after: silence_limit }));
    drop(silent);
    let mut second = pair(&service);
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
fn an_upload_that_gets_nowhere_is_given_up_with_what_was_staged_and_a_late_byte_does_no_harm() {
    let (store, service) = service();
    let mut pair = pair(&service);
    let txn = pair.begin(1);
    pair.blob = vec![7; 5_000_000];
    let upload = pair.client.upload(txn, Oid(1), Tid::ZERO, vec![], 5_000_000, None).unwrap();
    let digest = Digest(*blake3::hash(&pair.blob).as_bytes());
    while pair.client.finish_blob(upload, digest).is_err() {
        if !pair.exchange() {
            pair.woken.recv().unwrap();
        }
    }
    // The client has said all but the digest, of which the server does not hear.
    let mut lost = Vec::new();
    while pair.client.poll_transmit(Time::ZERO, &mut lost).is_some() {}
    let timeout = Config::default().transfer_timeout;
    let mut now = Time::ZERO;
    let is_answer =
        |event: &client::Event| matches!(event, client::Event::Reply { id, .. } if *id == upload.into());
    while !pair.told.iter().any(is_answer) {
        // The client is there: it answers pings.
        now = now + timeout;
        pair.session.receive(now, Bytes::from_static(&[2, 0, 0, 0, 14, 1])).unwrap();
        pair.session.handle_timeout(now).unwrap();
        while pair.exchange() {}
    }
    let late = RequestError::Deadline { what: Deadline::Transfer, after_ms: 120_000 };
    assert_eq!(pair.answer(upload.into()), Err(late));
    while store.counts().staged_bytes > 0 {
        std::thread::yield_now();
    }
    pair.session.receive(now, Bytes::from(lost)).unwrap();
    let commit = pair.client.request(Request::Commit { txn });
    assert!(matches!(commit, Err(UsageError::WrongPhase { phase: Phase::Doomed, .. })), "{commit:?}");
}

#[test]
fn everybody_hears_of_a_commit_before_an_answer_exposes_it() {
    let (_store, service) = service();
    let (mut writer, mut reader) = (pair(&service), pair(&service));
    let txn = writer.begin(1);
    writer.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let commit = writer.client.request(Request::Commit { txn }).unwrap();
    let Ok(Reply::Finished { tid }) = writer.answer(commit) else { panic!("not committed") };
    let told = client::Event::Invalidate { tid, oids: vec![Oid(1)] };
    assert_eq!(writer.told.last(), Some(&told), "the writer, too, before its own answer");

    let load = reader.client.request(Request::Load { oid: Oid(1) }).unwrap();
    assert!(matches!(reader.answer(load), Ok(Reply::Revision(revision)) if revision.tid == tid));
    assert_eq!(reader.told, [told]);
}

#[test]
fn a_service_that_stops_finishes_what_was_voted_for_and_begins_nothing() {
    let (store, service) = service();
    let mut pair = pair(&service);
    let txn = pair.begin(1);
    pair.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let vote = pair.client.request(Request::Vote { txn }).unwrap();
    assert_eq!(pair.answer(vote), Ok(Reply::Voted));

    service.stop();
    pair.until(|event| *event == client::Event::Goodbye);
    assert!(!pair.session.is_finished(), "a transaction waits to be finished");
    let finish = pair.client.request(Request::Finish { txn }).unwrap();
    assert!(matches!(pair.answer(finish), Ok(Reply::Finished { .. })));
    assert!(pair.session.is_finished());
    assert_eq!(store.load(Oid(1)).unwrap().data, [1]);

    let late = Handler::new(&service, Time::ZERO, || {});
    let client = client::Connection::new(Time::ZERO, Config::default(), b"");
    let (_, woken) = mpsc::channel();
    let (blob, told, received, up) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut late = Pair { client, session: late, woken, blob, told, received, up };
    let mut hello = Vec::new();
    buffered::transmit(&mut late.client, Time::ZERO, &mut hello, usize::MAX, |_, _| Ok(()));
    late.session.receive(Time::ZERO, Bytes::from(hello)).unwrap();
    let mut refusal = Vec::new();
    late.session.transmit(Time::ZERO, &mut refusal, 1 << 20, false);
    assert!(late.session.is_finished() && late.client.handle_control(Time::ZERO, &refusal).is_err());
}

#[test]
fn who_connects_in_the_middle_of_an_announcement_does_not_miss_it() {
    let (store, service) = service();
    let mut before = pair(&service);
    // The service has told all sessions of the commit, and readers do not see it yet: then somebody connects.
    let (met, newcomer) = mpsc::channel();
    let at = service.clone();
    let _subscription = store.subscribe(Arc::new(move |tid, _: &[Oid]| {
        let mut newcomer = pair(&at);
        while newcomer.exchange() {}
        let hears = |event: &client::Event| matches!(event, client::Event::Invalidate { tid: told, .. } if *told == tid);
        met.send(newcomer.told.iter().any(hears)).unwrap();
    }));
    let txn = before.begin(1);
    before.client.request(Request::Store { txn, oid: Oid(1), base: Tid::ZERO, data: vec![1] }).unwrap();
    let commit = before.client.request(Request::Commit { txn }).unwrap();
    assert!(matches!(before.answer(commit), Ok(Reply::Finished { .. })));
    assert!(newcomer.recv().unwrap(), "it was told that it knows of all commits before, and of none since");
}
