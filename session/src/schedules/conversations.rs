//! Whole conversations: a client and a server with all that lies behind them, while the connection is cut.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::client;
use crate::client::{Addresses, BlobSource, CallError, ClientConfig, Completion, Reconnect, VoteError};
use crate::io::{CloseReason, ConnectionHandler, ConnectionIo};
use blobferry_cache::{Cache, CacheConfig};
use blobferry_platform::sync::{Arc, Condvar, Mutex, explore, mpsc, thread};
use blobferry_protocol::{BlobId, BlobInfo, Digest, Oid, Outcome, Tid, Time, TxnMeta};
use rustix::net::{AddressFamily, SocketType};

use crate::schedules::{finish, patient, txn, vote};
use crate::server::{Handler, ServerConfig, ServerCore};
use blobferry_store::{MemoryStore, OpenBlob, Store};

/// What has a bell waits until it is rung.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock() = true;
        self.heard.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock();
        while !std::mem::take(&mut *rung) {
            rung = self.heard.wait(rung);
        }
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    state: Mutex<(VecDeque<u8>, Way)>,
    /// Of who reads.
    bell: Arc<Bell>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Way {
    #[default]
    Open,
    Closed,
    Cut,
}

impl Pipe {
    fn end(&self, how: Way) {
        let mut state = self.state.lock();
        if state.1 == Way::Open {
            state.1 = how;
        }
        drop(state);
        self.bell.ring();
    }
}

/// One end of a connection. Dropped, it is closed.
struct Stream {
    from: Arc<Pipe>,
    to: Arc<Pipe>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.to.end(Way::Closed);
    }
}

impl Stream {
    fn pair() -> (Stream, Stream) {
        let (here, there) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
        (Stream { from: here.clone(), to: there.clone() }, Stream { from: there, to: here })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.to.state.lock();
        if state.1 == Way::Cut {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let some = bytes.len().min(200);
        state.0.extend(&bytes[..some]);
        drop(state);
        self.to.bell.ring();
        Ok(some)
    }

    /// Writes all that can be read from a socket now; whether nothing more will come there.
    fn pass_on(&self, mut from: &UnixStream) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            let mut rest = match from.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => &buffer[..n],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            while !rest.is_empty() {
                rest = &rest[self.write(rest)?..];
            }
        }
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.from.state.lock();
        match state.1 {
            Way::Cut => Err(ErrorKind::ConnectionReset.into()),
            Way::Open if state.0.is_empty() => Err(ErrorKind::WouldBlock.into()),
            _ => state.0.read(buffer),
        }
    }

    /// What a transport does.
    fn drive(&self, carrier: &mut ConnectionIo<impl ConnectionHandler>) -> CloseReason {
        // A carrier writes to a socket only: what it has written there is passed on at once.
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        loop {
            let written = carrier.write(&near, |write| write());
            match (self.pass_on(&far), written) {
                (Err(error), _) => return error.into(),
                (Ok(_), Err(ended)) => return ended,
                // Everything was said. Nobody waits here until the other end has closed, too.
                (Ok(true), Ok(())) => return CloseReason::Finished,
                (Ok(false), Ok(())) => {}
            }
            let read =
                if carrier.wants_input() { carrier.read(|buffer| self.read(buffer)) } else { Ok(false) };
            match read {
                Ok(true) => {}
                Ok(false) => self.from.bell.wait(),
                Err(ended) => return ended,
            }
        }
    }
}

/// A socket that is not connected, to be tuned.
fn socket() -> OwnedFd {
    rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()
}

/// Serves one connection to its end.
fn serve(service: &ServerCore, stream: &Stream) {
    let bell = stream.from.bell.clone();
    let session = |now: Time| Handler::new(service, now, move || bell.ring());
    let mut carrier = ConnectionIo::begin(&socket(), session).unwrap();
    stream.drive(&mut carrier);
}

/// Connects a client to a server, again and again, until the client has had enough. The first connections are cut.
fn connect(session: &client::Session, service: &ServerCore, cuts: usize) {
    let mut others = Vec::new();
    for attempt in 0.. {
        let (near, far) = Stream::pair();
        if attempt < cuts {
            let (near, far) = (near.to.clone(), near.from.clone());
            let (has_input, session) = (mpsc::channel(), session.clone());
            session.connected(Box::new(move |connected| _ = has_input.0.send(connected.is_ok())));
            others.push(thread::spawn(move || {
                // Who never was connected does not try again.
                _ = has_input.1.recv();
                (0..3).for_each(|_| thread::yield_now());
                near.end(Way::Cut);
                far.end(Way::Cut);
            }));
        }
        let service = service.clone();
        others.push(thread::spawn(move || serve(&service, &far)));
        let bell = near.from.bell.clone();
        let mut carrier = session.connect(&socket(), move || bell.ring()).unwrap();
        let ended = near.drive(&mut carrier);
        session.lost(&ended);
        if session.next_dial().is_none() {
            break;
        }
    }
    others.into_iter().for_each(|other| other.join().unwrap());
}

/// Waits for the answer to a call.
fn wait<T: Send + 'static, E: Send + 'static>(call: impl FnOnce(Completion<T, E>)) -> Result<T, E> {
    let (answer, answered) = mpsc::channel();
    call(Box::new(move |result| answer.send(result).unwrap()));
    answered.recv().expect("a call was forgotten")
}

const BLOB: Oid = Oid(1);
const BYTES: [u8; 700] = [7; 700];

/// A store with a blob.
fn store() -> (Arc<MemoryStore>, BlobId) {
    let store = MemoryStore::new(patient()).unwrap();
    store.begin(txn(1), TxnMeta::default()).unwrap();
    let mut stage = store.stage(BYTES.len() as u64).unwrap();
    stage.write(&BYTES).unwrap();
    let staged = stage.complete(Digest(*blake3::hash(&BYTES).as_bytes())).unwrap();
    store.store_blob(txn(1), BLOB, Tid::ZERO, Vec::new(), staged).unwrap();
    vote(&store, 1).unwrap();
    let tid = finish(&store, 1).unwrap();
    (Arc::new(store), BlobId { oid: BLOB, tid })
}

/// One client loads a blob, twice at once, and commits something, while the first so many of its connections are cut; and
/// `meanwhile` this happens. All goes well in the end where it `goes_on`.
fn converse(
    cache: &Cache,
    cuts: usize,
    goes_on: bool,
    meanwhile: impl FnOnce(client::Session, ServerCore) + Send + 'static,
) {
    let (store, blob) = store();
    let config =
        ServerConfig { workers: 2, detach_timeout: Duration::from_secs(1), ..ServerConfig::default() };
    let service = ServerCore::new(store.clone(), config);
    let patience = if goes_on { Duration::MAX } else { Duration::ZERO };
    let reconnect = Some(Reconnect { patience, ..Reconnect::default() });
    let config = ClientConfig { reconnect, ..ClientConfig::default() };
    let session = client::Session::new(cache.clone(), &config, Addresses::from("server:1"), 0);
    let connects = {
        let (session, service) = (session.clone(), service.clone());
        thread::spawn(move || connect(&session, &service, cuts))
    };
    let happens = {
        let (session, service) = (session.clone(), service.clone());
        thread::spawn(move || meanwhile(session, service))
    };
    let load = move |session: client::Session| match wait(|done| session.load_blob(blob, None, done)) {
        Ok(cached) => assert_eq!(cached.size(), BYTES.len() as u64),
        Err(error) => assert!(!goes_on, "{error}"),
    };
    let loads = [session.clone(), session.clone()].map(|session| thread::spawn(move || load(session)));
    commit(&session, &store, goes_on);
    loads.into_iter().for_each(|loads| loads.join().unwrap());
    happens.join().unwrap();
    session.goodbye();
    connects.join().unwrap();
    service.stop();
    drop(service);
    while store.counts().open > 0 {
        thread::yield_now(); // what was lost is kept for a second
    }
    store.close();
    _ = std::fs::remove_file(cache.layout().blob_path(blob));
}

/// Commits, and compares what the client is told with what the server knows.
fn commit(session: &client::Session, store: &MemoryStore, goes_on: bool) {
    let mut transaction = session.begin(TxnMeta::default()).unwrap();
    let name = transaction.id();
    let (stored, is_stored) = mpsc::channel();
    let stored_too = stored.clone();
    transaction.store(
        Oid(2),
        Tid::ZERO,
        vec![2],
        Box::new(move |result| stored.send(result.is_ok()).unwrap()),
    );
    let source = BlobSource::Bytes(BYTES.to_vec().into());
    let done = Box::new(move |result: Result<BlobInfo, CallError>| stored_too.send(result.is_ok()).unwrap());
    transaction.store_blob(Oid(3), Tid::ZERO, Vec::new(), source, None, done);
    let committed = wait(|done| transaction.commit(done));
    let stored: Vec<bool> = is_stored.iter().collect();
    assert_eq!(stored.len(), 2, "a call was forgotten");
    drop(transaction);
    let outcome = super::wait(|done| store.outcome(name, done)).unwrap();
    if let Outcome::Committed { tid } = outcome {
        let blob = store.open_blob(BlobId { oid: Oid(3), tid }).unwrap();
        assert!(matches!(blob, OpenBlob::Small { bytes, .. } if bytes == BYTES));
    }
    match (&committed, outcome) {
        (Ok(tid), Outcome::Committed { tid: at }) => assert_eq!((*tid, stored), (at, vec![true, true])),
        (Err(VoteError::Call(CallError::OutcomeUnknown { .. })), _) => assert!(!goes_on),
        // Its time was over before the client was back, for instance.
        (Err(VoteError::Call(_)), Outcome::NotCommitted) => {}
        other => panic!("{other:?}"),
    }
}

fn with_cache(schedules: usize, scene: impl Fn(&Cache) + Send + Sync + 'static) {
    let home = tempfile::tempdir().unwrap();
    explore(schedules, move || scene(&Cache::open(home.path(), CacheConfig::default()).unwrap()));
}

#[test]
fn a_conversation_comes_to_its_end() {
    with_cache(200, |cache| converse(cache, 0, true, |_, _| {}));
}

#[test]
fn a_conversation_goes_on_after_each_cut() {
    with_cache(500, |cache| converse(cache, 2, true, |_, _| {}));
}

#[test]
fn everybody_is_answered_when_the_server_stops() {
    with_cache(300, |cache| {
        converse(cache, 0, false, |_, service| {
            (0..3).for_each(|_| thread::yield_now());
            service.stop();
        });
    });
}

#[test]
fn everybody_is_answered_when_the_client_is_closed() {
    with_cache(300, |cache| {
        converse(cache, 1, false, |session, _| {
            (0..3).for_each(|_| thread::yield_now());
            session.close("enough");
        });
    });
}
