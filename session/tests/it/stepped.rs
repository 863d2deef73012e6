//! A server and its client in one thread, in which no time passes. Jobs for the pool, and steps of the store's threads, are
//! counted, and run only on demand.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use allocation_counter::{AllocationInfo, measure};
use blobferry_platform::os::files::Step;
use blobferry_platform::os::simulation::{Entered, Simulation, enter};
use blobferry_platform::os::{Job, Next};
use blobferry_protocol::{
    Config, Digest, Oid, Reply, Request, RequestError, RequestId, Tid, Time, TransferEvent, TxnId, TxnMeta,
    buffered, client,
};
use blobferry_session::io::ConnectionHandler;
use blobferry_session::server::{Handler, ServerConfig, ServerCore};
use blobferry_store::{SqliteStore, Store, StoreConfig};
use bytes::Bytes;
use tempfile::TempDir;

use crate::support::{digest, new_txn};

type ThreadStep = Box<dyn FnMut() -> Next + Send>;

/// The simulated operating system.
struct World {
    moment: Instant,
    jobs: RefCell<VecDeque<Job>>,
    steps: RefCell<Vec<ThreadStep>>,
    /// The number of jobs until now.
    count: Cell<u64>,
}

impl Simulation for World {
    fn now(&self) -> Instant {
        self.moment
    }
    fn unix_time(&self) -> Duration {
        Duration::from_secs(1_700_000_000)
    }
    fn random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
    fn boot(&self) -> [u8; 16] {
        [1; 16]
    }
    fn run(&self, job: Job) {
        self.count.set(self.count.get() + 1);
        self.jobs.borrow_mut().push_back(job);
    }
    fn serve(&self, step: ThreadStep) {
        self.steps.borrow_mut().push(step);
    }
    fn free(&self) -> u64 {
        1 << 40
    }
    fn file(&self, step: Step<'_>) -> io::Result<usize> {
        Ok(match step {
            Step::Write { len, .. } => len,
            _ => 0,
        })
    }
}

/// The cost of what a server has done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Jobs for the pool.
    pub(crate) jobs: u64,
    /// Wake-ups of the handler.
    pub(crate) woken: u64,
    /// Allocations of the handler on the thread that drives it.
    pub(crate) session: AllocationInfo,
    /// Allocations of the store's own threads.
    pub(crate) store: AllocationInfo,
}

/// A server with one client.
pub(crate) struct Stepped {
    pub(crate) store: Arc<dyn Store>,
    client: client::Connection,
    session: Handler,
    woken: Arc<std::sync::atomic::AtomicU64>,
    blob: Vec<u8>,
    answered: Vec<(RequestId, Option<Result<Reply, RequestError>>)>,
    pub(crate) received: Vec<u8>,
    _dir: TempDir,
    world: Rc<World>,
    _entered: Entered,
}

impl Stepped {
    /// Creates a server on a new store. Its client stores these bytes.
    pub(crate) fn new(blob: Vec<u8>) -> Stepped {
        let world = Rc::new(World {
            moment: Instant::now(),
            jobs: RefCell::default(),
            steps: RefCell::default(),
            count: Cell::new(0),
        });
        let entered = enter(world.clone());
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), StoreConfig::default()).unwrap());
        let core = ServerCore::new(store.clone(), ServerConfig::default());
        let woken = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let count = woken.clone();
        let session = Handler::new(&core, Time::ZERO, move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let client = client::Connection::new(Time::ZERO, Config::default(), b"");
        let (answered, received) = (Vec::new(), Vec::new());
        let mut stepped = Stepped {
            store,
            client,
            session,
            woken,
            blob,
            answered,
            received,
            _dir: dir,
            world,
            _entered: entered,
        };
        stepped.settle();
        stepped
    }

    /// Moves the bytes of the client to the server once, and the immediate answers back.
    pub(crate) fn exchange(&mut self) -> Done {
        let (mut up, mut down, blob) = (Vec::new(), Vec::with_capacity(1 << 20), &self.blob);
        buffered::transmit(&mut self.client, Time::ZERO, &mut up, usize::MAX, |slice, into| {
            into.extend_from_slice(&blob[slice.offset as usize..][..slice.len as usize]);
            Ok(())
        });
        let up = Bytes::from(up);
        let (jobs, woken) = (self.world.count.get(), self.woken.load(std::sync::atomic::Ordering::Relaxed));
        let session = measure(|| {
            if !up.is_empty() {
                self.session.receive(Time::ZERO, up).unwrap();
            }
            self.session.transmit(Time::ZERO, &mut down, 1 << 20, false);
        });
        let mut received = (&mut self.answered, &mut self.received);
        let event =
            |received: &mut (&mut Vec<_>, &mut Vec<u8>), _: &mut client::Connection, event| match event {
                client::Event::Reply { id, result } => received.0.push((id, Some(result))),
                client::Event::Transfer(TransferEvent::Stopped { transfer, .. }) => {
                    received.0.push((transfer.into(), None));
                }
                _ => {}
            };
        let payload = |received: &mut (&mut Vec<_>, &mut Vec<u8>), _, at| received.1.extend(&down[at]);
        buffered::receive(&mut self.client, Time::ZERO, &down, &mut received, event, payload).unwrap();
        Done {
            jobs: self.world.count.get() - jobs,
            woken: self.woken.load(std::sync::atomic::Ordering::Relaxed) - woken,
            session,
            store: AllocationInfo::default(),
        }
    }

    /// Runs the steps of the store's threads that are due.
    pub(crate) fn serve(&mut self) -> Done {
        let woken = self.woken.load(std::sync::atomic::Ordering::Relaxed);
        let mut steps = self.world.steps.take();
        let store = measure(|| {
            for step in &mut steps {
                while step() == Next::Now {}
            }
        });
        self.world.steps.borrow_mut().extend(steps);
        let woken = self.woken.load(std::sync::atomic::Ordering::Relaxed) - woken;
        Done { woken, store, ..Done::default() }
    }

    /// Runs everything that is pending.
    pub(crate) fn settle(&mut self) {
        let mut rest = 3;
        while rest > 0 {
            rest -= 1;
            self.exchange();
            self.serve();
            while let Some(job) = { self.world.jobs.borrow_mut().pop_front() } {
                job();
                rest = 3;
            }
        }
    }

    /// Returns the answer to a request; `None` if there is none yet.
    pub(crate) fn answer(&mut self, id: RequestId) -> Option<Option<Result<Reply, RequestError>>> {
        let at = self.answered.iter().position(|(answered, _)| *answered == id)?;
        Some(self.answered.swap_remove(at).1)
    }

    /// Requests a commit of the blob.
    pub(crate) fn commit_blob(&mut self, oid: u64, base: Tid) -> (TxnId, RequestId) {
        let (txn, digest, size) = (new_txn(), digest(&self.blob), self.blob.len() as u64);
        self.ask(Request::Begin { txn, meta: TxnMeta::default() });
        self.client.upload(txn, Oid(oid), base, vec![1; 100], size, Some::<Digest>(digest)).unwrap();
        (txn, self.ask(Request::Commit { txn }))
    }

    /// Requests a commit of a record.
    pub(crate) fn commit_record(&mut self, oid: u64, base: Tid) -> RequestId {
        let txn = new_txn();
        self.ask(Request::Begin { txn, meta: TxnMeta::default() });
        self.ask(Request::Store { txn, oid: Oid(oid), base, data: vec![1; 100] });
        self.ask(Request::Commit { txn })
    }

    pub(crate) fn ask(&mut self, request: Request) -> RequestId {
        self.client.request(request).unwrap()
    }
}
