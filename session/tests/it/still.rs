//! A server and its client in one thread, in which no time passes: whatever a worker would do is counted, and done only
//! when it is asked for, and so are the steps of the store's own threads.

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

type Servant = Box<dyn FnMut() -> Next + Send>;

/// The operating system.
struct World {
    moment: Instant,
    jobs: RefCell<VecDeque<Job>>,
    servants: RefCell<Vec<Servant>>,
    /// Jobs there have been.
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
    fn serve(&self, step: Servant) {
        self.servants.borrow_mut().push(step);
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

/// What a server has done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Jobs that were given to workers.
    pub(crate) jobs: u64,
    /// Times that the session was woken.
    pub(crate) woken: u64,
    /// What the session has taken of memory on the thread that drives it.
    pub(crate) session: AllocationInfo,
    /// What the store's own threads have.
    pub(crate) store: AllocationInfo,
}

/// A server with one client, and all that they stand on.
pub(crate) struct Still {
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

impl Still {
    /// One on a new store, whose client stores these bytes.
    pub(crate) fn new(blob: Vec<u8>) -> Still {
        let world = Rc::new(World {
            moment: Instant::now(),
            jobs: RefCell::default(),
            servants: RefCell::default(),
            count: Cell::new(0),
        });
        let entered = enter(world.clone());
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), StoreConfig::default()).unwrap());
        let service = ServerCore::new(store.clone(), ServerConfig::default());
        let woken = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let count = woken.clone();
        let session = Handler::new(&service, Time::ZERO, move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let client = client::Connection::new(Time::ZERO, Config::default(), b"");
        let (answered, received) = (Vec::new(), Vec::new());
        let mut still = Still {
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
        still.settle();
        still
    }

    /// Says what the client has to say, once, and hears what is answered at once.
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
        let mut heard = (&mut self.answered, &mut self.received);
        let event = |heard: &mut (&mut Vec<_>, &mut Vec<u8>), _: &mut client::Connection, event| match event {
            client::Event::Reply { id, result } => heard.0.push((id, Some(result))),
            client::Event::Transfer(TransferEvent::Stopped { transfer, .. }) => {
                heard.0.push((transfer.into(), None));
            }
            _ => {}
        };
        let payload = |heard: &mut (&mut Vec<_>, &mut Vec<u8>), _, at| heard.1.extend(&down[at]);
        buffered::receive(&mut self.client, Time::ZERO, &down, &mut heard, event, payload).unwrap();
        Done {
            jobs: self.world.count.get() - jobs,
            woken: self.woken.load(std::sync::atomic::Ordering::Relaxed) - woken,
            session,
            store: AllocationInfo::default(),
        }
    }

    /// Lets each of the store's own threads do what there is for it.
    pub(crate) fn serve(&mut self) -> Done {
        let woken = self.woken.load(std::sync::atomic::Ordering::Relaxed);
        let mut servants = self.world.servants.take();
        let store = measure(|| {
            for servant in &mut servants {
                while servant() == Next::Now {}
            }
        });
        self.world.servants.borrow_mut().extend(servants);
        let woken = self.woken.load(std::sync::atomic::Ordering::Relaxed) - woken;
        Done { woken, store, ..Done::default() }
    }

    /// Does all there is to do.
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

    /// What the client was told of a request; `None` where it has not been answered.
    pub(crate) fn answer(&mut self, id: RequestId) -> Option<Option<Result<Reply, RequestError>>> {
        let at = self.answered.iter().position(|(answered, _)| *answered == id)?;
        Some(self.answered.swap_remove(at).1)
    }

    /// A commit of the blob, in one go.
    pub(crate) fn commit_blob(&mut self, oid: u64, base: Tid) -> (TxnId, RequestId) {
        let (txn, digest, size) = (new_txn(), digest(&self.blob), self.blob.len() as u64);
        self.ask(Request::Begin { txn, meta: TxnMeta::default() });
        self.client.upload(txn, Oid(oid), base, vec![1; 100], size, Some::<Digest>(digest)).unwrap();
        (txn, self.ask(Request::Commit { txn }))
    }

    /// A commit of a record, in one go.
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
