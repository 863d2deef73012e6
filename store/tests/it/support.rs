//! Shared by the tests: stores to test, and short names for what clients do.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

use blobferry_protocol::{BlobId, Digest, Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};
use blobferry_store::{
    Done, MemoryStore, OpenBlob, SqliteStore, Staged, Store, StoreConfig, Subscription, Vote,
};
use tempfile::TempDir;

/// A store, and the directory that it is in. Fields are dropped in this order.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) dir: Option<TempDir>,
}

/// Makes a fixture with one kind of store.
pub(crate) type Make = fn(StoreConfig) -> Fixture;

pub(crate) fn memory(config: StoreConfig) -> Fixture {
    Fixture { store: Arc::new(MemoryStore::new(config).unwrap()), dir: None }
}

pub(crate) fn sqlite(config: StoreConfig) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture { store: open(dir.path(), config), dir: Some(dir) }
}

pub(crate) fn open(dir: &Path, config: StoreConfig) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(dir, config).unwrap())
}

/// Returns a name that no other transaction of this process has.
pub(crate) fn new_txn() -> TxnId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut name = [0; 16];
    name[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    name[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    TxnId(name)
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// Makes a call, and returns the receiver of its answer.
pub(crate) fn ask<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Receiver<Result<T, RequestError>> {
    let (answer, answers) = mpsc::channel();
    call(Box::new(move |result| _ = answer.send(result)));
    answers
}

/// Makes a call, and waits for the answer.
pub(crate) fn wait<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
    ask(call).recv().expect("every call is answered")
}

pub(crate) trait StoreExt {
    fn begin_new(&self) -> TxnId;
    fn ask_vote(&self, txn: TxnId) -> Receiver<Result<Vote, RequestError>>;
    fn ask_finish(&self, txn: TxnId) -> Receiver<Result<Tid, RequestError>>;
    fn vote_now(&self, txn: TxnId) -> Result<Vote, RequestError>;
    fn finish_now(&self, txn: TxnId) -> Result<Tid, RequestError>;
    fn outcome_now(&self, txn: TxnId) -> Result<Outcome, RequestError>;
    /// Votes and finishes, without conflicts.
    fn commit(&self, txn: TxnId) -> Tid;
    /// Begins a transaction with new data for one object, and votes for it.
    fn voted(&self, oid: u64, base: Tid) -> TxnId;
    /// Commits a change of one object.
    fn put(&self, oid: u64, base: Tid, data: &[u8]) -> Tid;
    fn put_blob(&self, oid: u64, base: Tid, bytes: &[u8]) -> Tid;
    fn remove(&self, oid: u64, base: Tid) -> Tid;
    fn staged(&self, bytes: &[u8]) -> Staged;
    fn blob(&self, oid: u64, tid: Tid) -> Result<Vec<u8>, RequestError>;
}

impl StoreExt for dyn Store {
    fn begin_new(&self) -> TxnId {
        let txn = new_txn();
        self.begin(txn, TxnMeta::default()).unwrap();
        txn
    }

    fn ask_vote(&self, txn: TxnId) -> Receiver<Result<Vote, RequestError>> {
        ask(|done| self.vote(txn, done))
    }

    fn ask_finish(&self, txn: TxnId) -> Receiver<Result<Tid, RequestError>> {
        ask(|done| self.finish(txn, done))
    }

    fn vote_now(&self, txn: TxnId) -> Result<Vote, RequestError> {
        wait(|done| self.vote(txn, done))
    }

    fn finish_now(&self, txn: TxnId) -> Result<Tid, RequestError> {
        wait(|done| self.finish(txn, done))
    }

    fn outcome_now(&self, txn: TxnId) -> Result<Outcome, RequestError> {
        wait(|done| self.outcome(txn, done))
    }

    fn commit(&self, txn: TxnId) -> Tid {
        assert_eq!(self.vote_now(txn), Ok(Vote::Ready));
        self.finish_now(txn).unwrap()
    }

    fn voted(&self, oid: u64, base: Tid) -> TxnId {
        let txn = self.begin_new();
        self.store(txn, Oid(oid), base, b"voted".to_vec()).unwrap();
        assert_eq!(self.vote_now(txn), Ok(Vote::Ready));
        txn
    }

    fn put(&self, oid: u64, base: Tid, data: &[u8]) -> Tid {
        let txn = self.begin_new();
        self.store(txn, Oid(oid), base, data.to_vec()).unwrap();
        self.commit(txn)
    }

    fn put_blob(&self, oid: u64, base: Tid, bytes: &[u8]) -> Tid {
        let txn = self.begin_new();
        self.store_blob(txn, Oid(oid), base, b"with a blob".to_vec(), self.staged(bytes)).unwrap();
        self.commit(txn)
    }

    fn remove(&self, oid: u64, base: Tid) -> Tid {
        let txn = self.begin_new();
        self.delete(txn, Oid(oid), base).unwrap();
        self.commit(txn)
    }

    fn staged(&self, bytes: &[u8]) -> Staged {
        let mut stage = self.stage(bytes.len() as u64).unwrap();
        for chunk in bytes.chunks(10_000) {
            stage.write(chunk).unwrap();
        }
        stage.complete(digest(bytes)).unwrap()
    }

    fn blob(&self, oid: u64, tid: Tid) -> Result<Vec<u8>, RequestError> {
        let (info, bytes) = match self.open_blob(BlobId { oid: Oid(oid), tid })? {
            OpenBlob::Small { info, bytes } => (info, bytes),
            OpenBlob::File { info, mut file, .. } => {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
                (info, bytes)
            }
        };
        assert_eq!((info.size, info.digest), (bytes.len() as u64, digest(&bytes)));
        Ok(bytes)
    }
}

/// Blocks the committer in the announcement of the next commit, so that all transactions finished
/// in the meantime are one batch.
pub(crate) struct Gate {
    reached: Receiver<Tid>,
    open: Option<mpsc::Sender<()>>,
    _subscription: Subscription,
}

impl Gate {
    pub(crate) fn close(store: &dyn Store) -> Gate {
        let (reach, reached) = mpsc::channel();
        let (open, opened) = mpsc::channel::<()>();
        let opened = Mutex::new(opened);
        let subscription = store.subscribe(Arc::new(move |tid, _| {
            _ = reach.send(tid);
            _ = opened.lock().unwrap().recv(); // an error once the gate is open
        }));
        Gate { reached, open: Some(open), _subscription: subscription }
    }

    /// Waits until a commit is blocked here.
    pub(crate) fn wait(&self) -> Tid {
        self.reached.recv().unwrap()
    }

    pub(crate) fn open(mut self) {
        self.open = None;
    }
}

/// Runs one test of this binary in another process, in which [`role`] is `Some(dir)`.
pub(crate) fn spawn(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("BLOBFERRY_STORE_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Returns the directory to work in, if a test has started this process.
pub(crate) fn role() -> Option<std::path::PathBuf> {
    std::env::var_os("BLOBFERRY_STORE_TEST_DIR").map(Into::into)
}
