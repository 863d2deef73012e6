//! Runs transactions over a back end, from begin to vote and from finish to announcement.
//!
//! Two threads belong to a store. The *committer* takes all transactions that are to be finished
//! as one batch, has the back end make it durable, and announces each commit. The *maintenance
//! thread* checks votes that were granted their locks late, and aborts transactions whose deadline
//! has passed. A thread that releases locks only records which votes were granted theirs, so no
//! call spends its time on another transaction's vote.

use std::time::Duration;

use blobferry_platform::os;
use blobferry_platform::os::Next;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_platform::sync::thread;
use blobferry_platform::sync::thread::JoinHandle;
use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};

use crate::backend::Backend;
use crate::config::StoreConfig;
use crate::errors::OpenError;
use crate::staging::Quota;
use crate::store::{Done, Vote};
use crate::transactions::group_commit::GroupCommit;
use crate::transactions::publisher::CommitPublisher;
use crate::transactions::table::{
    Answer, EndedTransaction, Job, MaintenanceTask, NextTask, PendingVote, TransactionTable, VoteStep,
};
use crate::transactions::write_set::WriteSet;

/// Runs transactions over a back end, and is a [`Store`](crate::Store).
///
/// Dropping it closes the store.
#[derive(Debug)]
pub struct Coordinator<B> {
    pub(crate) core: Arc<Core<B>>,
    pub(crate) threads: Threads,
}

/// What the store's threads and its callers share.
pub(crate) struct Core<B> {
    pub(crate) backend: B,
    pub(crate) config: StoreConfig,
    pub(crate) table: Arc<TransactionTable>,
    pub(crate) publisher: Arc<CommitPublisher>,
    pub(crate) quota: Quota,
    pub(crate) batches: AtomicU64,
}

/// Starts the threads of a store over a back end. `last` is the last committed transaction.
pub(crate) fn start<B: Backend>(
    backend: B,
    config: StoreConfig,
    last: Tid,
) -> Result<Coordinator<B>, OpenError> {
    let table = Arc::new(TransactionTable::new(config.clone()));
    let (publisher, quota) = (Arc::new(CommitPublisher::new(last)), Quota::new(config.max_staged));
    let core = Arc::new(Core { backend, config, table, publisher, quota, batches: AtomicU64::new(0) });
    let threads = Threads { table: core.table.clone(), handles: Mutex::default() };
    threads.spawn("store-committer", &core, Core::run_committer, Core::commit_step)?;
    threads.spawn("store-maintain", &core, Core::run_maintenance, Core::maintenance_step)?;
    Ok(Coordinator { core, threads })
}

impl<B: Backend> Core<B> {
    /// Fails if the store is closing, or if its back end takes no more writes.
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

    /// Fails unless the transaction takes stores at this moment.
    pub(crate) fn check_open(&self, txn: TxnId) -> Result<(), RequestError> {
        self.change(txn, |_| Ok(()))
    }

    /// Makes a change in a transaction. If that fails, the transaction is incomplete: it is doomed.
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
        let step = {
            let locked = changes.lock();
            let oids: Arc<[Oid]> = locked.bases().map(|(oid, _)| oid).collect();
            let vote = PendingVote { txn, changes: changes.clone(), done };
            self.table.with_table(|table| table.request_locks(vote, oids, os::now()))
        };
        self.advance(step);
    }

    /// Does what comes next for a vote.
    fn advance(&self, step: VoteStep) {
        match step {
            VoteStep::Wait => {}
            VoteStep::Compare(vote) => {
                let checked = self.backend.check(vote.txn, &vote.changes.lock());
                let result = self.table.with_table(|table| table.finish_vote(&vote, checked, os::now()));
                (vote.done)(result);
            }
            VoteStep::Refuse(done, error) => done(Err(error)),
        }
    }

    pub(crate) fn finish(&self, txn: TxnId, done: Done<Tid>) {
        let queued = self.table.with_table(|table| table.finish(txn, done));
        if let Err((done, error)) = queued {
            done(Err(error));
        }
    }

    pub(crate) fn abort(&self, txn: TxnId) {
        let ended = self.table.with_table(|table| table.end(txn, None));
        settle(ended);
    }

    pub(crate) fn outcome(&self, txn: TxnId, done: Done<Outcome>) {
        let queued = self.table.with_table(|table| table.outcome(txn, done));
        match queued {
            Ok(ended) => settle(ended),
            Err((done, error)) => done(Err(error)),
        }
    }

    /// Reads as of the last visible transaction.
    ///
    /// Reads again if nothing was found and a newer transaction became visible in the meantime: a
    /// pack may have removed what the newer one replaced.
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
        while let Some(jobs) = self.table.wait_for_jobs(&mut group) {
            let count = jobs.len();
            let took = self.commit(jobs);
            let behind = self.table.with_table(|table| table.queued());
            group.batch_done(count, behind.unwrap_or(0), took);
        }
    }

    /// Does the committer's next step without blocking, if a simulator drives it.
    fn commit_step(&self) -> Next {
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

    /// Commits all jobs as one batch and answers each. Returns how long the durable write took.
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

    /// Announces a durable commit: to subscribers first, then to readers, then to the votes that
    /// wait for its locks, and to its client last.
    fn announce(&self, answer: Answer, result: Result<Outcome, RequestError>) {
        match (answer, result) {
            (Answer::Finish { txn, oids, done }, Ok(Outcome::Committed { tid })) => {
                self.publisher.publish(tid, &oids);
                let ended = self.table.with_table(|table| table.committed(txn));
                settle(ended);
                done(Ok(tid));
            }
            (Answer::Finish { txn, done, .. }, failed) => {
                let error = failed.err().unwrap_or(RequestError::TransactionExists { txn });
                let reason = error.to_string();
                tracing::error!(%txn, reason, "a transaction that was voted for could not be committed");
                let ended = self.table.with_table(|table| table.failed(txn, &reason));
                settle(ended);
                done(Err(error));
            }
            (Answer::Outcome { txn, done }, outcome) => {
                self.table.with_table(|table| table.fenced(txn));
                done(outcome);
            }
        }
    }

    fn run_maintenance(&self) {
        while let Some(task) = self.table.wait_for_task() {
            self.do_task(task);
        }
    }

    /// Does the maintenance thread's next step without blocking, if a simulator drives it.
    fn maintenance_step(&self) -> Next {
        let now = os::now();
        match self.table.poll_task(now) {
            NextTask::Stop => Next::Over,
            NextTask::Wait(None) => Next::Waits,
            NextTask::Wait(Some(time)) => Next::At(now + time),
            NextTask::Do(task) => {
                self.do_task(task);
                Next::Now
            }
        }
    }

    fn do_task(&self, task: MaintenanceTask) {
        match task {
            MaintenanceTask::Compare(vote) => self.advance(VoteStep::Compare(vote)),
            MaintenanceTask::Expire(txn, ended) => {
                tracing::warn!(%txn, reason = %ended.error(), "aborted a transaction whose deadline has passed");
                settle(Some(ended));
            }
        }
    }
}

/// Notifies the vote of a transaction that has ended, and removes the transaction's files.
///
/// Must be called without the table's lock, since removing files takes time.
fn settle(ended: Option<EndedTransaction>) {
    if let Some(ended) = ended {
        ended.notify();
    }
}

impl<B> std::fmt::Debug for Core<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("last_tid", &self.publisher.last()).finish_non_exhaustive()
    }
}

/// The threads of a store. Dropping it stops them.
pub(crate) struct Threads {
    table: Arc<TransactionTable>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts a thread for `run`. A simulator calls `step` repeatedly instead.
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

    /// Commits what is being finished, ends everything else, and joins the threads.
    pub(crate) fn stop(&self) {
        let ended = self.table.with_table(|table| table.stop());
        ended.into_iter().for_each(EndedTransaction::notify);
        let handles = std::mem::take(&mut *self.handles.lock());
        for handle in handles {
            // A completion that runs on one of these threads may drop the last owner of the store.
            if handle.thread().id() != thread::current().id() {
                // The panic hook has already reported a thread that panicked.
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
