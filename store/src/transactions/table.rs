//! The transaction table: phases, locks and deadlines of all open transactions, and what is to be
//! committed next.
//!
//! [`TransactionTable`] has the lock, and the two condition variables that the store's threads wait
//! on. What is locked, [`Transactions`], never blocks, reads a file or calls a completion: the
//! [coordinator](crate::transactions::coordinator) does that with what its methods return.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use blobferry_platform::os;
use blobferry_platform::sync::{Arc, Condvar, Mutex, thread};
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{Conflict, Deadline, Oid, Outcome, Phase, RequestError, Tid, TxnId, TxnMeta};

use crate::config::StoreConfig;
use crate::store::{Done, Vote};
use crate::transactions::abort_reasons::AbortReasons;
use crate::transactions::group_commit::GroupCommit;
use crate::transactions::locks::LockTable;
use crate::transactions::write_set::WriteSet;

const BY_CLIENT: &str = "it was aborted by its client";

/// How often the committer polls for jobs after it was woken, before it sleeps again.
///
/// The committer is woken when a vote begins, because waking a thread takes about as long as a
/// vote.
const SPINS: u32 = if cfg!(feature = "shuttle") { 1 } else { 40 };

/// The changes of a transaction. A thread that needs both locks this one before the table.
pub(crate) type SharedChanges = Arc<Mutex<WriteSet>>;

/// The table of open transactions, shared by the store's callers and its two threads.
pub(crate) struct TransactionTable {
    transactions: Mutex<Transactions>,
    committer: Condvar,
    maintenance: Condvar,
}

impl TransactionTable {
    pub(crate) fn new(config: StoreConfig) -> TransactionTable {
        TransactionTable {
            transactions: Mutex::new(Transactions::new(config)),
            committer: Condvar::new(),
            maintenance: Condvar::new(),
        }
    }

    /// Does something under the lock, then wakes the threads that have something to do because of
    /// it.
    pub(crate) fn with_table<T>(&self, act: impl FnOnce(&mut Transactions) -> T) -> T {
        let mut table = self.transactions.lock();
        let done = act(&mut table);
        let Wake { committer, maintenance } = table.take_wake();
        drop(table);
        if committer {
            self.committer.notify_one();
        }
        if maintenance {
            self.maintenance.notify_one();
        }
        done
    }

    /// Waits until there are jobs to commit, and up to a batch's time longer for others to join.
    ///
    /// Returns `None` when there will be no more.
    pub(crate) fn wait_for_jobs(&self, group: &mut GroupCommit) -> Option<Vec<Job>> {
        let (mut table, mut spins) = (self.transactions.lock(), 0);
        let queued = loop {
            match table.queued()? {
                0 if spins > 0 => {
                    spins -= 1;
                    drop(table);
                    thread::yield_now();
                    table = self.transactions.lock();
                }
                0 => {
                    table.committer_sleeps = Some(1);
                    table = self.committer.wait(table);
                    spins = SPINS;
                }
                queued => break queued,
            }
        };
        if let Some((enough, patience)) = group.linger(queued) {
            let until = os::now().checked_add(patience);
            while table.queued().is_some_and(|queued| queued < enough) && !table.stopping {
                let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(os::now()));
                if left.is_zero() {
                    break;
                }
                table.committer_sleeps = Some(enough);
                (table, _) = self.committer.wait_timeout(table, left);
            }
            group.lingered(table.queued()?.saturating_sub(queued));
        }
        Some(table.take_jobs())
    }

    /// Waits for the maintenance thread's next task. Returns `None` when there will be no more.
    pub(crate) fn wait_for_task(&self) -> Option<MaintenanceTask> {
        let mut table = self.transactions.lock();
        loop {
            match table.next_task(os::now()) {
                NextTask::Do(task) => return Some(task),
                NextTask::Stop => return None,
                NextTask::Wait(None) => table = self.maintenance.wait(table),
                NextTask::Wait(Some(time)) => (table, _) = self.maintenance.wait_timeout(table, time),
            }
        }
    }

    /// Returns the maintenance thread's next task without waiting for it.
    pub(crate) fn poll_task(&self, now: Instant) -> NextTask {
        self.transactions.lock().next_task(now)
    }
}

/// Counters since the store was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: u64,
    pub(crate) aborts: u64,
    pub(crate) timeouts: u64,
    pub(crate) conflicts: u64,
}

/// The contents of the transaction table.
pub(crate) struct Transactions {
    open: BTreeMap<TxnId, OpenTransaction>,
    locks: LockTable<TxnId>,
    /// Votes that waited for their locks and were granted them: the maintenance thread checks them.
    granted: VecDeque<TxnId>,
    /// When votes must have their locks, and when transactions that were voted for must be
    /// finished.
    deadlines: BTreeSet<(Instant, TxnId)>,
    /// What the committer takes next, all at once.
    queue: Vec<Job>,
    /// Names that are being fenced off, with the number of jobs that do it, queued or running.
    fencing: BTreeMap<TxnId, usize>,
    abort_reasons: AbortReasons,
    stopping: bool,
    /// A vote has begun that need not wait: the committer is likely to have a job soon.
    expects_job: bool,
    /// The committer sleeps until this number of jobs is queued. `None` while it works.
    committer_sleeps: Option<usize>,
    /// The maintenance thread sleeps, and wakes by itself at this moment if there is one. `None`
    /// while it works.
    maintenance_sleeps: Option<Option<Instant>>,
    config: StoreConfig,
    pub(crate) counters: Counters,
}

struct OpenTransaction {
    meta: TxnMeta,
    changes: SharedChanges,
    /// What it has requested locks for; empty before its vote.
    oids: Arc<[Oid]>,
    state: State,
}

enum State {
    Open,
    Doomed,
    /// The vote waits for its locks.
    Waiting {
        done: Done<Vote>,
        deadline: Option<Instant>,
    },
    /// The vote has its locks; its bases are being compared.
    Checking,
    Voted {
        deadline: Option<Instant>,
    },
    Finishing,
}

impl State {
    fn phase(&self) -> Phase {
        match self {
            State::Open => Phase::Open,
            State::Doomed => Phase::Doomed,
            State::Waiting { .. } | State::Checking => Phase::Voting,
            State::Voted { .. } => Phase::Voted,
            State::Finishing => Phase::Finishing,
        }
    }

    /// Returns the moment at which the transaction expires in this state.
    fn deadline(&self) -> Option<Instant> {
        match self {
            State::Waiting { deadline, .. } | State::Voted { deadline } => *deadline,
            _ => None,
        }
    }
}

/// A vote that is not answered yet.
pub(crate) struct PendingVote {
    pub(crate) txn: TxnId,
    pub(crate) changes: SharedChanges,
    pub(crate) done: Done<Vote>,
}

/// What comes next for a vote, to be done without the lock.
#[must_use]
pub(crate) enum VoteStep {
    /// It has its locks: compare its bases, then call [`Transactions::finish_vote`].
    Compare(PendingVote),
    /// It waits in the table for its locks: the maintenance thread goes on with it.
    Wait,
    /// It is refused: answer it.
    Refuse(Done<Vote>, RequestError),
}

/// Work for the committer, with the answer that it owes.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) answer: Answer,
}

/// One item of a batch that is made durable.
pub(crate) enum Work {
    /// Commit this transaction.
    Commit { txn: TxnId, meta: TxnMeta, changes: SharedChanges },
    /// Make sure that no transaction of this name ever commits, unless one has already.
    Fence(TxnId),
}

/// The answer that a job owes.
pub(crate) enum Answer {
    Finish { txn: TxnId, oids: Arc<[Oid]>, done: Done<Tid> },
    Outcome { txn: TxnId, done: Done<Outcome> },
}

/// A transaction that has left the table. Drop it without the lock: its files are removed then.
#[must_use]
pub(crate) struct EndedTransaction {
    transaction: OpenTransaction,
    error: RequestError,
}

impl EndedTransaction {
    /// Returns the error that a waiting vote gets.
    pub(crate) fn error(&self) -> &RequestError {
        &self.error
    }

    /// Answers the vote that waited, if there was one.
    pub(crate) fn notify(self) {
        if let State::Waiting { done, .. } = self.transaction.state {
            done(Err(self.error));
        }
    }
}

/// A task of the maintenance thread, to be done without the lock.
pub(crate) enum MaintenanceTask {
    /// This vote was granted its locks: compare its bases.
    Compare(PendingVote),
    /// This transaction's deadline has passed.
    Expire(TxnId, EndedTransaction),
}

/// What the maintenance thread does next.
pub(crate) enum NextTask {
    Do(MaintenanceTask),
    /// Nothing before this time has passed; nothing at all without one.
    Wait(Option<Duration>),
    Stop,
}

/// The threads that must be woken.
///
/// Waking costs a system call, and a needless one two context switches, while most changes of the
/// table concern neither thread. So each thread records what it sleeps for.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wake {
    committer: bool,
    maintenance: bool,
}

impl Transactions {
    fn new(config: StoreConfig) -> Transactions {
        Transactions {
            open: BTreeMap::new(),
            locks: LockTable::new(),
            granted: VecDeque::new(),
            deadlines: BTreeSet::new(),
            queue: Vec::new(),
            fencing: BTreeMap::new(),
            abort_reasons: AbortReasons::default(),
            stopping: false,
            expects_job: false,
            committer_sleeps: None,
            maintenance_sleeps: None,
            config,
            counters: Counters::default(),
        }
    }

    /// Returns how many transactions are open, in any phase.
    pub(crate) fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// Fails if the store is closing.
    pub(crate) fn check_running(&self) -> Result<(), RequestError> {
        if self.stopping { Err(RequestError::Stopping) } else { Ok(()) }
    }

    pub(crate) fn begin(&mut self, txn: TxnId, meta: TxnMeta, changes: WriteSet) -> Result<(), RequestError> {
        self.check_running()?;
        if self.open.contains_key(&txn)
            || self.fencing.contains_key(&txn)
            || self.abort_reasons.reason(txn).is_some()
        {
            return Err(RequestError::TransactionExists { txn });
        }
        let (limit, actual) = (self.config.max_transactions, self.open.len() as u64 + 1);
        if actual > limit {
            return Err(RequestError::Limit { what: "transactions open at once".to_owned(), limit, actual });
        }
        let changes = Arc::new(Mutex::new(changes));
        self.open.insert(txn, OpenTransaction { meta, changes, oids: Arc::new([]), state: State::Open });
        Ok(())
    }

    /// Returns the changes of a transaction, whatever its phase.
    pub(crate) fn changes(&self, txn: TxnId) -> Result<SharedChanges, RequestError> {
        self.open.get(&txn).map(|transaction| transaction.changes.clone()).ok_or_else(|| self.missing(txn))
    }

    /// Fails unless the transaction takes stores.
    ///
    /// The caller holds the lock of its changes. Until it unlocks them, the transaction keeps
    /// taking stores, or has left the table.
    pub(crate) fn check_open(&self, txn: TxnId, changes: &SharedChanges) -> Result<(), RequestError> {
        match self.open.get(&txn).filter(|found| Arc::ptr_eq(&found.changes, changes)) {
            None => Err(self.missing(txn)),
            Some(OpenTransaction { state: State::Open, .. }) => Ok(()),
            Some(OpenTransaction { state: State::Doomed, .. }) => Err(RequestError::Doomed { txn }),
            Some(found) => Err(RequestError::WrongPhase { txn, phase: found.state.phase() }),
        }
    }

    /// Dooms a transaction: a store has failed, so it can only be aborted.
    pub(crate) fn doom(&mut self, txn: TxnId, changes: &SharedChanges) {
        if let Some(transaction) = self.find(txn, changes) {
            transaction.state = State::Doomed;
        }
    }

    /// Requests the locks of a vote. The caller holds the lock of its changes.
    pub(crate) fn request_locks(&mut self, vote: PendingVote, oids: Arc<[Oid]>, now: Instant) -> VoteStep {
        if let Err(error) = self.check_open(vote.txn, &vote.changes) {
            return VoteStep::Refuse(vote.done, error);
        }
        let PendingVote { txn, changes, done } = vote;
        let granted = self.locks.request(txn, oids.clone());
        let Some(transaction) = self.open.get_mut(&txn) else { return VoteStep::Wait }; // checked above
        transaction.oids = oids;
        if granted {
            transaction.state = State::Checking;
            self.expects_job = true;
            return VoteStep::Compare(PendingVote { txn, changes, done });
        }
        let deadline = now.checked_add(self.config.lock_timeout);
        transaction.state = State::Waiting { done, deadline };
        self.deadlines.extend(deadline.map(|deadline| (deadline, txn)));
        VoteStep::Wait
    }

    /// Decides a vote whose bases were compared. If there are no conflicts, it keeps its locks
    /// until the deadline. Returns the answer.
    pub(crate) fn finish_vote(
        &mut self,
        vote: &PendingVote,
        checked: Result<Vec<Conflict>, RequestError>,
        now: Instant,
    ) -> Result<Vote, RequestError> {
        let txn = vote.txn;
        let deadline = now.checked_add(self.config.vote_timeout);
        let Some(transaction) = self.find(txn, &vote.changes) else {
            let reason = self.abort_reasons.reason(txn).unwrap_or(BY_CLIENT).to_owned();
            return Err(RequestError::Aborted { txn, reason });
        };
        match checked {
            Ok(conflicts) if conflicts.is_empty() => {
                transaction.state = State::Voted { deadline };
                self.deadlines.extend(deadline.map(|deadline| (deadline, txn)));
                Ok(Vote::Ready)
            }
            Ok(conflicts) => {
                transaction.state = State::Open;
                self.counters.conflicts += 1;
                self.unlock(txn);
                if planted(Bug::UnlockAnother) {
                    let is_voted = |other: &OpenTransaction| matches!(other.state, State::Voted { .. });
                    let another = self.open.iter().find(|(_, other)| is_voted(other)).map(|(txn, _)| *txn);
                    another.into_iter().for_each(|txn| self.unlock(txn));
                }
                Ok(Vote::Conflicts(conflicts))
            }
            Err(error) => {
                let taken = matches!(error, RequestError::TransactionExists { .. });
                transaction.state = if taken { State::Doomed } else { State::Open };
                self.unlock(txn);
                Err(error)
            }
        }
    }

    /// Queues a transaction that was voted for.
    pub(crate) fn finish(&mut self, txn: TxnId, done: Done<Tid>) -> Result<(), (Done<Tid>, RequestError)> {
        let Some(transaction) = self.open.get_mut(&txn) else { return Err((done, self.missing(txn))) };
        let State::Voted { deadline } = transaction.state else {
            let phase = transaction.state.phase();
            return Err((done, RequestError::WrongPhase { txn, phase }));
        };
        transaction.state = State::Finishing;
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, txn));
        }
        let (meta, changes) = (mem::take(&mut transaction.meta), transaction.changes.clone());
        let answer = Answer::Finish { txn, oids: transaction.oids.clone(), done };
        self.queue.push(Job { work: Work::Commit { txn, meta, changes }, answer });
        Ok(())
    }

    /// Queues a request for an outcome. Ends the transaction, unless it is being finished.
    pub(crate) fn outcome(
        &mut self,
        txn: TxnId,
        done: Done<Outcome>,
    ) -> Result<Option<EndedTransaction>, (Done<Outcome>, RequestError)> {
        if self.stopping {
            return Err((done, RequestError::Stopping));
        }
        if planted(Bug::OutcomeTooEarly)
            && self.open.get(&txn).is_some_and(|found| matches!(found.state, State::Finishing))
        {
            done(Ok(Outcome::NotCommitted));
            return Ok(None);
        }
        let ended = self.end(txn, Some("its outcome was asked for before it was finished"));
        *self.fencing.entry(txn).or_default() += 1;
        self.queue.push(Job { work: Work::Fence(txn), answer: Answer::Outcome { txn, done } });
        Ok(ended)
    }

    /// Notes that one job that fences this name off is done, whatever came of it.
    pub(crate) fn fenced(&mut self, txn: TxnId) {
        if let Some(jobs) = self.fencing.get_mut(&txn) {
            *jobs -= 1;
            if *jobs == 0 {
                self.fencing.remove(&txn);
            }
        }
    }

    /// Ends a transaction, unless it is being finished. The store's `reason`, if there is one, is
    /// remembered for later calls.
    pub(crate) fn end(&mut self, txn: TxnId, reason: Option<&str>) -> Option<EndedTransaction> {
        if matches!(self.open.get(&txn)?.state, State::Finishing) {
            return None;
        }
        self.counters.aborts += 1;
        self.remove(txn, reason.unwrap_or(BY_CLIENT), reason.is_some())
    }

    /// Removes a transaction whose commit is visible, and releases its locks.
    pub(crate) fn committed(&mut self, txn: TxnId) -> Option<EndedTransaction> {
        self.counters.commits += 1;
        self.remove(txn, "it is committed", false)
    }

    /// Removes a transaction whose commit has failed, and releases its locks.
    pub(crate) fn failed(&mut self, txn: TxnId, reason: &str) -> Option<EndedTransaction> {
        self.counters.aborts += 1;
        self.remove(txn, reason, true)
    }

    /// Returns the number of jobs for the committer; `None` when there will be no more.
    pub(crate) fn queued(&self) -> Option<usize> {
        if self.queue.is_empty() && self.stopping { None } else { Some(self.queue.len()) }
    }

    /// Takes all jobs, in order. The committer works from now on.
    pub(crate) fn take_jobs(&mut self) -> Vec<Job> {
        self.committer_sleeps = None;
        mem::take(&mut self.queue)
    }

    /// Takes no more work, and ends every transaction that is not being finished.
    pub(crate) fn stop(&mut self) -> Vec<EndedTransaction> {
        self.stopping = true;
        let open: Vec<TxnId> = self.open.keys().copied().collect();
        open.into_iter().filter_map(|txn| self.end(txn, Some("the server is stopping"))).collect()
    }

    /// Returns the threads that sleep and have something to do now. Each is named once.
    fn take_wake(&mut self) -> Wake {
        let jobs = self.queue.len().max(usize::from(mem::take(&mut self.expects_job)));
        let committer = self.committer_sleeps.take_if(|enough| self.stopping || jobs >= *enough);
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let is_sooner = |until: Option<Instant>| {
            deadline.is_some_and(|deadline| until.is_none_or(|until| deadline < until))
        };
        let has_task = self.stopping || !self.granted.is_empty();
        let maintenance = self.maintenance_sleeps.take_if(|until| has_task || is_sooner(*until));
        Wake { committer: committer.is_some(), maintenance: maintenance.is_some() }
    }

    /// Returns the maintenance thread's next task. If there is none, the thread sleeps from now on.
    fn next_task(&mut self, now: Instant) -> NextTask {
        let next = self.find_task(now);
        self.maintenance_sleeps = match next {
            NextTask::Wait(time) => Some(time.and_then(|time| now.checked_add(time))),
            NextTask::Do(_) | NextTask::Stop => None,
        };
        next
    }

    fn find_task(&mut self, now: Instant) -> NextTask {
        while let Some(txn) = self.granted.pop_front() {
            if let Some(vote) = self.take_granted(txn) {
                return NextTask::Do(MaintenanceTask::Compare(vote));
            }
        }
        match self.deadlines.first().copied() {
            _ if self.stopping => NextTask::Stop,
            Some((deadline, txn)) if deadline <= now => {
                self.deadlines.pop_first();
                self.counters.timeouts += 1;
                match self.expire(txn) {
                    Some(ended) => NextTask::Do(MaintenanceTask::Expire(txn, ended)),
                    None => NextTask::Wait(Some(Duration::ZERO)),
                }
            }
            next => NextTask::Wait(next.map(|(deadline, _)| deadline - now)),
        }
    }

    /// Ends a transaction whose deadline has passed. A waiting vote gets the deadline as its error;
    /// later calls get the reason.
    fn expire(&mut self, txn: TxnId) -> Option<EndedTransaction> {
        if !matches!(self.open.get(&txn)?.state, State::Waiting { .. }) {
            return self.end(txn, Some("it was voted for, but not finished in time"));
        }
        let ended = self.end(txn, Some("its vote did not get its locks in time"))?;
        Some(EndedTransaction { error: Deadline::Locks.passed(self.config.lock_timeout), ..ended })
    }

    /// Takes the vote of a transaction that was granted its locks, if it still waits for them.
    fn take_granted(&mut self, txn: TxnId) -> Option<PendingVote> {
        let transaction = self.open.get_mut(&txn).filter(|_| self.locks.holds(txn))?;
        match mem::replace(&mut transaction.state, State::Checking) {
            State::Waiting { done, deadline } => {
                if let Some(deadline) = deadline {
                    self.deadlines.remove(&(deadline, txn));
                }
                Some(PendingVote { txn, changes: transaction.changes.clone(), done })
            }
            other => {
                transaction.state = other;
                None
            }
        }
    }

    /// Finds a transaction, if it is still the one that has these changes.
    fn find(&mut self, txn: TxnId, changes: &SharedChanges) -> Option<&mut OpenTransaction> {
        self.open.get_mut(&txn).filter(|found| Arc::ptr_eq(&found.changes, changes))
    }

    fn remove(&mut self, txn: TxnId, reason: &str, remember: bool) -> Option<EndedTransaction> {
        let transaction = self.open.remove(&txn)?;
        if let Some(deadline) = transaction.state.deadline() {
            self.deadlines.remove(&(deadline, txn));
        }
        if !(planted(Bug::KeepLocks) && matches!(transaction.state, State::Voted { .. })) {
            self.unlock(txn);
        }
        if remember {
            self.abort_reasons.remember(txn, reason);
        }
        let error = RequestError::Aborted { txn, reason: reason.to_owned() };
        Some(EndedTransaction { transaction, error })
    }

    fn unlock(&mut self, txn: TxnId) {
        self.granted.extend(self.locks.release(txn));
    }

    /// Returns the error for a transaction that is not in the table.
    fn missing(&self, txn: TxnId) -> RequestError {
        match self.abort_reasons.reason(txn) {
            Some(reason) => RequestError::Aborted { txn, reason: reason.to_owned() },
            None => RequestError::NoSuchTransaction { txn },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::Quota;
    use crate::transactions::write_set::Spool;

    const COMMITTER: Wake = Wake { committer: true, maintenance: false };
    const MAINTENANCE: Wake = Wake { committer: false, maintenance: true };
    const NONE: Wake = Wake { committer: false, maintenance: false };

    fn table() -> Transactions {
        Transactions::new(StoreConfig::default())
    }

    fn pending_vote(table: &mut Transactions, n: u8) -> PendingVote {
        let txn = TxnId([n; 16]);
        let changes = WriteSet::new(Spool::new(0, std::path::Path::new("")), 1, &Quota::new(1)).unwrap();
        table.begin(txn, TxnMeta::default(), changes).unwrap();
        PendingVote { txn, changes: table.changes(txn).unwrap(), done: Box::new(|_| ()) }
    }

    fn queue_job(table: &mut Transactions) {
        assert!(table.outcome(TxnId([0; 16]), Box::new(|_| ())).is_ok_and(|ended| ended.is_none()));
    }

    #[test]
    fn the_committer_wakes_when_a_vote_gets_its_locks_at_once() {
        let mut table = table();
        let oids: Arc<[Oid]> = [Oid(1)].into();
        table.committer_sleeps = Some(1);
        for (n, granted) in [(1, true), (2, false)] {
            let vote = pending_vote(&mut table, n);
            assert!(!table.take_wake().committer);
            let step = table.request_locks(vote, oids.clone(), Instant::now());
            assert_eq!(matches!(step, VoteStep::Compare(_)), granted, "the second waits for its lock");
            assert_eq!(table.take_wake().committer, granted);
            table.committer_sleeps = Some(1);
        }
    }

    #[test]
    fn the_committer_wakes_once_when_enough_is_queued() {
        let mut table = table();
        queue_job(&mut table);
        assert_eq!(table.take_wake(), NONE, "both threads work");
        table.committer_sleeps = Some(3);
        queue_job(&mut table);
        assert_eq!(table.take_wake(), NONE);
        queue_job(&mut table);
        assert_eq!(table.take_wake(), COMMITTER);
        queue_job(&mut table);
        assert_eq!(table.take_wake(), NONE);
    }

    #[test]
    fn maintenance_wakes_for_votes_and_earlier_deadlines() {
        let (now, mut table, txn) = (Instant::now(), table(), TxnId([1; 16]));
        let at = |seconds| now + Duration::from_secs(seconds);
        table.maintenance_sleeps = Some(None);
        queue_job(&mut table);
        assert_eq!(table.take_wake(), NONE);
        table.deadlines.insert((at(9), txn));
        assert_eq!(table.take_wake(), MAINTENANCE);
        table.maintenance_sleeps = Some(Some(at(9)));
        assert_eq!(table.take_wake(), NONE);
        table.deadlines.insert((at(8), txn));
        assert_eq!(table.take_wake(), MAINTENANCE);
        table.maintenance_sleeps = Some(Some(at(8)));
        table.granted.push_back(txn);
        assert_eq!(table.take_wake(), MAINTENANCE);
    }

    #[test]
    fn both_threads_wake_when_the_store_stops() {
        let mut table = table();
        assert!(table.stop().is_empty());
        assert_eq!(table.take_wake(), NONE, "both threads work");
        table.committer_sleeps = Some(1);
        table.maintenance_sleeps = Some(None);
        assert_eq!(table.take_wake(), Wake { committer: true, maintenance: true });
    }
}
