//! The life of transactions, the same for every store: from begin to a vote, and from finish to the announcement.
//!
//! Two threads belong to a store. The *committer* takes all transactions that are to be finished as one batch, has
//! the back end make it durable, and announces each. The *maintenance* checks votes whose turn has come, and gives up
//! what has waited too long for its locks, or is not finished in time. Whoever releases locks only notes whose turn it is
//! now: nobody's call takes the time of another's vote.

use std::time::Duration;

use blobferry_platform::os;
use blobferry_platform::os::Next;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_platform::sync::thread;
use blobferry_platform::sync::thread::JoinHandle;
use blobferry_platform::sync::{Arc, Condvar, Mutex, MutexGuard};
use blobferry_protocol::{Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};

use crate::backend::Backend;
use crate::config::StoreConfig;
use crate::errors::OpenError;
use crate::staging::Quota;
use crate::store::{Done, Vote};
use crate::transactions::group_commit::GroupCommit;
use crate::transactions::publisher::CommitPublisher;
use crate::transactions::table::{
    Answer, EndedTransaction, Job, MaintenanceTask, PendingVote, TransactionTable,
};
use crate::transactions::wakeups::Wake;
use crate::transactions::write_set::WriteSet;

/// How often the committer looks for what it was called for. It is called when a vote begins, as to wake takes about as
/// long as to vote.
const LOOKS: u32 = if cfg!(feature = "shuttle") { 1 } else { 40 };

/// Runs transactions over a back end, and is a [`Store`](crate::Store).
///
/// Dropped, it closes.
#[derive(Debug)]
pub struct Coordinator<B> {
    pub(crate) core: Arc<Core<B>>,
    pub(crate) threads: Threads,
}

/// What the store's threads and its callers share.
pub(crate) struct Core<B> {
    pub(crate) backend: B,
    pub(crate) config: StoreConfig,
    pub(crate) table: Arc<SharedTable>,
    pub(crate) publisher: Arc<CommitPublisher>,
    pub(crate) quota: Quota,
    pub(crate) batches: AtomicU64,
}

/// The table, and the bells of the two who work at it.
pub(crate) struct SharedTable {
    table: Mutex<TransactionTable>,
    committer: Condvar,
    maintenance: Condvar,
}

impl SharedTable {
    /// The table, for the two who work at it.
    fn table(&self) -> MutexGuard<'_, TransactionTable> {
        self.table.lock()
    }

    /// Does something at the table, and calls those who rest and have something to do then.
    pub(crate) fn with_table<T>(&self, act: impl FnOnce(&mut TransactionTable) -> T) -> T {
        let mut table = self.table();
        let done = act(&mut table);
        let Wake { committer, maintenance } = table.call();
        drop(table);
        if committer {
            self.committer.notify_one();
        }
        if maintenance {
            self.maintenance.notify_one();
        }
        done
    }
}

/// Starts the threads of a store over a back end. `last` is the last transaction that is committed.
pub(crate) fn start<B: Backend>(
    backend: B,
    config: StoreConfig,
    last: Tid,
) -> Result<Coordinator<B>, OpenError> {
    let table = Mutex::new(TransactionTable::new(config.clone()));
    let table = Arc::new(SharedTable { table, committer: Condvar::new(), maintenance: Condvar::new() });
    let (publisher, quota) = (Arc::new(CommitPublisher::new(last)), Quota::new(config.max_staged));
    let core = Arc::new(Core { backend, config, table, publisher, quota, batches: AtomicU64::new(0) });
    let threads = Threads { table: core.table.clone(), handles: Mutex::default() };
    threads.spawn("store-committer", &core, Core::run_committer, Core::commit_next)?;
    threads.spawn("store-maintenance", &core, Core::run_steward, Core::do_next)?;
    Ok(Coordinator { core, threads })
}

impl<B: Backend> Core<B> {
    /// Refuses whatever would write when nothing can be written any more.
    pub(crate) fn check_writable(&self) -> Result<(), RequestError> {
        self.table.with_table(|table| table.check_running())?;
        self.backend.check_writable()
    }

    pub(crate) fn begin(&self, txn: TxnId, meta: TxnMeta) -> Result<(), RequestError> {
        self.check_writable()?;
        let (limit, actual) = (self.config.max_meta, (meta.user.len() + meta.description.len()) as u64);
        if actual > limit {
            let what = "bytes of a transaction's user and description".to_owned();
            return Err(RequestError::Limit { what, limit, actual });
        }
        let changes = WriteSet::new(self.backend.spool(), self.config.max_objects, &self.quota)?;
        self.table.with_table(|table| table.begin(txn, meta, changes))
    }

    /// Whether a transaction takes stores at this moment.
    pub(crate) fn check_open(&self, txn: TxnId) -> Result<(), RequestError> {
        self.change(txn, |_| Ok(()))
    }

    /// Makes a change in a transaction. Where that fails the transaction is not whole any more, and doomed.
    pub(crate) fn change(
        &self,
        txn: TxnId,
        change: impl FnOnce(&mut WriteSet) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        self.backend.check_writable()?;
        let changes = self.table.with_table(|table| table.changes(txn))?;
        let mut locked = changes.lock();
        self.table.with_table(|table| table.check_open(txn, &changes))?;
        change(&mut locked).inspect_err(|_| self.table.with_table(|table| table.doom(txn, &changes)))
    }

    pub(crate) fn vote(&self, txn: TxnId, done: Done<Vote>) {
        let changes = self.backend.check_writable();
        let changes = changes.and_then(|()| self.table.with_table(|table| table.changes(txn)));
        let changes = match changes {
            Ok(changes) => changes,
            Err(error) => return done(Err(error)),
        };
        let lined_up = {
            let locked = changes.lock();
            let oids: Arc<[Oid]> = locked.bases().map(|(oid, _)| oid).collect();
            let vote = PendingVote { txn, changes: changes.clone(), done };
            self.table.with_table(|table| table.request_locks(vote, oids, os::now()))
        };
        match lined_up {
            Ok(Some(vote)) => self.check(vote),
            Ok(None) => {}
            Err((vote, error)) => (vote.done)(Err(error)),
        }
    }

    /// Compares the bases of a transaction that has its locks.
    fn check(&self, vote: PendingVote) {
        let PendingVote { txn, changes, done } = vote;
        let checked = self.backend.check(txn, &changes.lock());
        let vote = self.table.with_table(|table| table.finish_vote(txn, &changes, checked, os::now()));
        done(vote);
    }

    pub(crate) fn finish(&self, txn: TxnId, done: Done<Tid>) {
        let queued = self.table.with_table(|table| table.finish(txn, done));
        if let Err((done, error)) = queued {
            done(Err(error));
        }
    }

    pub(crate) fn abort(&self, txn: TxnId) {
        let ended = self.table.with_table(|table| table.end(txn, None));
        drop_ended(ended);
    }

    pub(crate) fn outcome(&self, txn: TxnId, done: Done<Outcome>) {
        let queued = self.table.with_table(|table| table.outcome(txn, done));
        match queued {
            Ok(ended) => drop_ended(ended),
            Err((done, error)) => done(Err(error)),
        }
    }

    /// Reads at the last visible transaction; again where nothing was found and a newer one has become visible
    /// meanwhile, as a pack may have removed what the newer one has replaced.
    pub(crate) fn read<T>(
        &self,
        read: impl Fn(Tid) -> Result<Option<T>, RequestError>,
    ) -> Result<Option<T>, RequestError> {
        loop {
            let visible = self.publisher.last();
            let found = read(visible)?;
            if found.is_some() || visible == self.publisher.last() {
                return Ok(found);
            }
        }
    }

    fn run_committer(&self) {
        let mut group = GroupCommit::default();
        while let Some(jobs) = self.group(&mut group) {
            let count = jobs.len();
            let took = self.commit(jobs);
            let behind = self.table.with_table(|table| table.queued());
            group.batch_done(count, behind.unwrap_or(0), took);
        }
    }

    /// Waits until there is something to commit, and a little longer for others; `None` when there will be no more.
    fn group(&self, group: &mut GroupCommit) -> Option<Vec<Job>> {
        let (mut table, mut looks) = (self.table.table(), 0);
        let here = loop {
            match table.queued()? {
                0 if looks > 0 => {
                    looks -= 1;
                    drop(table);
                    thread::yield_now();
                    table = self.table.table();
                }
                0 => {
                    table.rest_until(1);
                    table = self.table.committer.wait(table);
                    looks = LOOKS;
                }
                here => break here,
            }
        };
        if let Some((enough, patience)) = group.linger(here) {
            let until = os::now().checked_add(patience);
            while table.queued().is_some_and(|here| here < enough) && !table.is_stopping() {
                let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(os::now()));
                if left.is_zero() {
                    break;
                }
                table.rest_until(enough);
                (table, _) = self.table.committer.wait_timeout(table, left);
            }
            group.lingered(table.queued()?.saturating_sub(here));
        }
        Some(table.take_jobs())
    }

    /// What the committer does next, where it has no thread of its own.
    fn commit_next(&self) -> Next {
        let jobs = self.table.with_table(|table| table.queued().map(|_| table.take_jobs()));
        match jobs {
            None => Next::Over,
            Some(jobs) if jobs.is_empty() => Next::Waits,
            Some(jobs) => {
                self.commit(jobs);
                Next::Now
            }
        }
    }

    /// Commits all of this at once, and tells everybody. How long it took to make it durable.
    fn commit(&self, jobs: Vec<Job>) -> Duration {
        let (batch, answers): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.work, job.answer)).unzip();
        let start = os::now();
        let results = self.backend.commit(self.publisher.last(), &batch);
        let took = os::now().saturating_duration_since(start);
        drop(batch);
        if results.iter().any(Result::is_ok) {
            self.batches.fetch_add(1, Ordering::Relaxed);
        }
        answers.into_iter().zip(results).for_each(|(answer, result)| self.announce(answer, result));
        self.backend.checkpoint_if_large();
        took
    }

    /// Tells of a commit that is durable: subscribers, then readers, then those who wait for its locks, then its
    /// client.
    fn announce(&self, answer: Answer, result: Result<Outcome, RequestError>) {
        match (answer, result) {
            (Answer::Finish { txn, oids, done }, Ok(Outcome::Committed { tid })) => {
                self.publisher.publish(tid, &oids);
                let ended = self.table.with_table(|table| table.committed(txn));
                drop_ended(ended);
                done(Ok(tid));
            }
            (Answer::Finish { txn, done, .. }, failed) => {
                let error = failed.err().unwrap_or(RequestError::TransactionExists { txn });
                let reason = error.to_string();
                tracing::error!(%txn, reason, "a transaction that was voted for could not be committed");
                let ended = self.table.with_table(|table| table.failed(txn, &reason));
                drop_ended(ended);
                done(Err(error));
            }
            (Answer::Outcome { txn, done }, outcome) => {
                self.table.with_table(|table| table.fenced(txn));
                done(outcome);
            }
        }
    }

    fn run_steward(&self) {
        let mut table = self.table.table();
        loop {
            match table.task(os::now()) {
                MaintenanceTask::Stop => return,
                MaintenanceTask::Wait(None) => {
                    table = self.table.maintenance.wait(table);
                }
                MaintenanceTask::Wait(Some(time)) => {
                    (table, _) = self.table.maintenance.wait_timeout(table, time);
                }
                MaintenanceTask::Check(vote) => {
                    drop(table);
                    self.check(vote);
                    table = self.table.table();
                }
                MaintenanceTask::GiveUp(txn, ended) => {
                    drop(table);
                    self.give_up(txn, ended);
                    table = self.table.table();
                }
            }
        }
    }

    /// What the maintenance does next, where it has no thread of its own.
    fn do_next(&self) -> Next {
        let now = os::now();
        let task = self.table.table().task(now);
        match task {
            MaintenanceTask::Stop => return Next::Over,
            MaintenanceTask::Wait(None) => return Next::Waits,
            MaintenanceTask::Wait(Some(time)) => return Next::At(now + time),
            MaintenanceTask::Check(vote) => self.check(vote),
            MaintenanceTask::GiveUp(txn, ended) => self.give_up(txn, ended),
        }
        Next::Now
    }

    fn give_up(&self, txn: TxnId, ended: EndedTransaction) {
        tracing::warn!(%txn, reason = %ended.error(), "gave up a transaction");
        drop_ended(Some(ended));
    }
}

/// Puts away what has ended: outside of the table, as it removes files, and tells who waits for it.
fn drop_ended(ended: Option<EndedTransaction>) {
    if let Some(ended) = ended {
        ended.tell();
    }
}

impl<B> std::fmt::Debug for Core<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("last_tid", &self.publisher.last()).finish_non_exhaustive()
    }
}

/// The threads of a store. Dropped, they are stopped.
pub(crate) struct Threads {
    table: Arc<SharedTable>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Has `run` run on a thread, or in a simulation `step` taken again and again.
    fn spawn<B: Backend>(
        &self,
        name: &str,
        core: &Arc<Core<B>>,
        run: fn(&Core<B>),
        step: fn(&Core<B>) -> Next,
    ) -> Result<(), OpenError> {
        let stepped = core.clone();
        if os::register_step(move || step(&stepped)) {
            return Ok(());
        }
        let core = core.clone();
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || run(&core));
        self.handles.lock().push(handle.map_err(OpenError::Thread)?);
        Ok(())
    }

    /// Commits what is being finished, ends everything else, and waits for the threads.
    pub(crate) fn stop(&self) {
        let ended = self.table.with_table(TransactionTable::stop);
        ended.into_iter().for_each(EndedTransaction::tell);
        let handles = std::mem::take(&mut *self.handles.lock());
        for handle in handles {
            // The last owner may let go of the store in an answer that one of its threads gives.
            if handle.thread().id() != thread::current().id() {
                // A thread that has panicked has been reported, and has nothing more to say.
                let _ = handle.join();
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Threads")
    }
}
