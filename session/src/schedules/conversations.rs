//! A client and a server with everything behind them, while their connections are cut.

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

/// A flag that a thread waits for.
#[derive(Default)]
struct Signal {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn wake(&self) {
        *self.is_set.lock() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut is_set = self.is_set.lock();
        while !std::mem::take(&mut *is_set) {
            is_set = self.changed.wait(is_set);
        }
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    state: Mutex<(VecDeque<u8>, Way)>,
    /// Wakes the reader.
    signal: Arc<Signal>,
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
        self.signal.wake();
    }
}

/// One end of a connection. Dropping it closes the connection.
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
        self.to.signal.wake();
        Ok(some)
    }

    /// Writes all that can be read from a socket now. Returns whether the socket is at its end.
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

    /// Drives a connection, as a transport does.
    fn drive(&self, connection: &mut ConnectionIo<impl ConnectionHandler>) -> CloseReason {
        // A connection writes to a socket only. What it has written there is passed on at once.
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        loop {
            let written = connection.write(&near, |write| write());
            match (self.pass_on(&far), written) {
                (Err(error), _) => return error.into(),
                (Ok(_), Err(ended)) => return ended,
                // Everything is sent. This thread does not wait until the other end is closed as well.
                (Ok(true), Ok(())) => return CloseReason::Finished,
                (Ok(false), Ok(())) => {}
            }
            let read = if connection.wants_input() {
                connection.read(|buffer| self.read(buffer))
            } else {
                Ok(false)
            };
            match read {
                Ok(true) => {}
                Ok(false) => self.from.signal.wait(),
                Err(ended) => return ended,
            }
        }
    }
}

/// Returns a socket that is not connected, to set options on.
fn socket() -> OwnedFd {
    rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()
}

/// Serves one connection to its end.
fn serve(core: &ServerCore, stream: &Stream) {
    let signal = stream.from.signal.clone();
    let handler = |now: Time| Handler::new(core, now, move || signal.wake());
    let mut connection = ConnectionIo::begin(&socket(), handler).unwrap();
    stream.drive(&mut connection);
}

/// Connects a client to a server until the session is over. The first `cuts` connections are cut.
fn connect(session: &client::Session, core: &ServerCore, cuts: usize) {
    let mut others = Vec::new();
    for attempt in 0.. {
        let (near, far) = Stream::pair();
        if attempt < cuts {
            let (near, far) = (near.to.clone(), near.from.clone());
            let (connected, is_connected) = mpsc::channel();
            session.connected(move |result| _ = connected.send(result.is_ok()));
            others.push(thread::spawn(move || {
                // A session that never was connected does not try again.
                _ = is_connected.recv();
                (0..3).for_each(|_| thread::yield_now());
                near.end(Way::Cut);
                far.end(Way::Cut);
            }));
        }
        let core = core.clone();
        others.push(thread::spawn(move || serve(&core, &far)));
        let signal = near.from.signal.clone();
        let mut connection = session.connect(&socket(), move || signal.wake()).unwrap();
        let ended = near.drive(&mut connection);
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
    answered.recv().expect("a call has no answer")
}

const BLOB: Oid = Oid(1);
const BYTES: [u8; 700] = [7; 700];

/// Returns a store with a blob.
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

/// Loads a blob twice at once with one client, and commits, while the first `cuts` of its connections are cut and
/// `meanwhile` runs. If the session `goes_on`, everything succeeds in the end.
fn converse(
    cache: &Cache,
    cuts: usize,
    goes_on: bool,
    meanwhile: impl FnOnce(client::Session, ServerCore) + Send + 'static,
) {
    let (store, blob) = store();
    let config =
        ServerConfig { workers: 2, detach_timeout: Duration::from_secs(1), ..ServerConfig::default() };
    let core = ServerCore::new(store.clone(), config);
    let unreachable_timeout = if goes_on { Duration::MAX } else { Duration::ZERO };
    let reconnect = Some(Reconnect { unreachable_timeout, ..Reconnect::default() });
    let config = ClientConfig { reconnect, ..ClientConfig::default() };
    let session = client::Session::new(cache.clone(), &config, Addresses::from("server:1"), 0);
    let connects = {
        let (session, core) = (session.clone(), core.clone());
        thread::spawn(move || connect(&session, &core, cuts))
    };
    let happens = {
        let (session, core) = (session.clone(), core.clone());
        thread::spawn(move || meanwhile(session, core))
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
    core.stop();
    drop(core);
    while store.counts().open > 0 {
        thread::yield_now(); // a lost transaction is detached for a second
    }
    store.close();
    _ = std::fs::remove_file(cache.layout().blob_path(blob));
}

/// Commits, and compares the answers to the client with the state of the server.
fn commit(session: &client::Session, store: &MemoryStore, goes_on: bool) {
    let mut transaction = session.begin(TxnMeta::default()).unwrap();
    let name = transaction.id();
    let (stored, is_stored) = mpsc::channel();
    let stored_too = stored.clone();
    transaction.store(Oid(2), Tid::ZERO, vec![2], move |result| stored.send(result.is_ok()).unwrap());
    let source = BlobSource::bytes(BYTES.to_vec());
    let done = move |result: Result<BlobInfo, CallError>| stored_too.send(result.is_ok()).unwrap();
    transaction.store_blob(Oid(3), Tid::ZERO, Vec::new(), source, None, done);
    let committed = wait(|done| transaction.commit(done));
    let stored: Vec<bool> = is_stored.iter().collect();
    assert_eq!(stored.len(), 2, "a call has no answer");
    drop(transaction);
    let outcome = super::wait(|done| store.outcome(name, done)).unwrap();
    if let Outcome::Committed { tid } = outcome {
        let blob = store.open_blob(BlobId { oid: Oid(3), tid }).unwrap();
        assert!(matches!(blob, OpenBlob::Small { bytes, .. } if bytes == BYTES));
    }
    match (&committed, outcome) {
        (Ok(tid), Outcome::Committed { tid: at }) => assert_eq!((*tid, stored), (at, vec![true, true])),
        (Err(VoteError::Call(CallError::OutcomeUnknown { .. })), _) => assert!(!goes_on),
        // For instance, the transaction expired before the client was back.
        (Err(VoteError::Call(_)), Outcome::NotCommitted) => {}
        other => panic!("{other:?}"),
    }
}

fn with_cache(schedules: usize, test: impl Fn(&Cache) + Send + Sync + 'static) {
    let home = tempfile::tempdir().unwrap();
    explore(schedules, move || test(&Cache::open(home.path(), CacheConfig::default()).unwrap()));
}

#[test]
fn all_calls_are_answered() {
    with_cache(200, |cache| converse(cache, 0, true, |_, _| {}));
}

#[test]
fn calls_go_on_after_each_cut() {
    with_cache(500, |cache| converse(cache, 2, true, |_, _| {}));
}

#[test]
fn all_calls_are_answered_when_the_server_stops() {
    with_cache(300, |cache| {
        converse(cache, 0, false, |_, core| {
            (0..3).for_each(|_| thread::yield_now());
            core.stop();
        });
    });
}

#[test]
fn all_calls_are_answered_when_the_client_is_closed() {
    with_cache(300, |cache| {
        converse(cache, 1, false, |session, _| {
            (0..3).for_each(|_| thread::yield_now());
            session.close("enough");
        });
    });
}
