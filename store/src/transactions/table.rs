//! Where every open transaction stands: the one place that knows phases, locks, deadlines, and what is to be
//! finished next.
//!
//! Nothing here waits, reads a file or calls back: the [coordinator](crate::transactions::coordinator) does that, with what it is
//! handed out from here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{Conflict, Deadline, Oid, Outcome, Phase, RequestError, Tid, TxnId, TxnMeta};

use crate::config::StoreConfig;
use crate::store::{Done, Vote};
use crate::transactions::abort_reasons::AbortReasons;
use crate::transactions::locks::LockTable;
use crate::transactions::wakeups::{Sleepers, Wake};
use crate::transactions::write_set::WriteSet;

const BY_CLIENT: &str = "it was aborted by its client";

/// The changes of a transaction. Locked before the table where both are needed, and never the other way round.
pub(crate) type SharedChanges = Arc<Mutex<WriteSet>>;

/// Counters since the store was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: u64,
    pub(crate) aborts: u64,
    pub(crate) timeouts: u64,
    pub(crate) conflicts: u64,
}

pub(crate) struct TransactionTable {
    open: BTreeMap<TxnId, OpenTransaction>,
    locks: LockTable<TxnId>,
    /// Waiting votes that have got their locks and are to be checked.
    granted: VecDeque<TxnId>,
    /// When votes must have their locks, and when transactions that were voted for must be finished.
    deadlines: BTreeSet<(Instant, TxnId)>,
    /// What the committer takes next, all at once.
    queue: Vec<Job>,
    /// Names that are being fenced off, and by how many jobs in or behind the queue.
    fencing: BTreeMap<TxnId, usize>,
    abort_reasons: AbortReasons,
    stopping: bool,
    /// A vote was begun a moment ago, and will finish_vote at once: the committer may have something to do soon.
    soon: bool,
    rest: Sleepers,
    config: StoreConfig,
    pub(crate) counters: Counters,
}

struct OpenTransaction {
    meta: TxnMeta,
    changes: SharedChanges,
    /// What it has asked locks for, from its vote on.
    oids: Arc<[Oid]>,
    state: State,
}

enum State {
    Open,
    Doomed,
    /// For its locks.
    Waiting {
        done: Done<Vote>,
        deadline: Option<Instant>,
    },
    /// Has its locks; its bases are being compared.
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

    /// When it must be something else.
    fn deadline(&self) -> Option<Instant> {
        match self {
            State::Waiting { deadline, .. } | State::Voted { deadline } => *deadline,
            _ => None,
        }
    }
}

/// A vote that has its locks: its bases are to be compared now.
pub(crate) struct PendingVote {
    pub(crate) txn: TxnId,
    pub(crate) changes: SharedChanges,
    pub(crate) done: Done<Vote>,
}

/// Work for the committer, and who waits for it.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) answer: Answer,
}

/// One step of a durable write.
pub(crate) enum Work {
    /// Commit this transaction.
    Commit { txn: TxnId, meta: TxnMeta, changes: SharedChanges },
    /// Make sure that this name is never committed under, unless it was already.
    Fence(TxnId),
}

/// Who waits for a piece of work.
pub(crate) enum Answer {
    Finish { txn: TxnId, oids: Arc<[Oid]>, done: Done<Tid> },
    Outcome { txn: TxnId, done: Done<Outcome> },
}

/// A transaction that has ended without a commit, to be put away when the table is unlocked: its files are removed.
#[must_use]
pub(crate) struct EndedTransaction {
    transaction: OpenTransaction,
    error: RequestError,
}

impl EndedTransaction {
    /// Why.
    pub(crate) fn error(&self) -> &RequestError {
        &self.error
    }

    /// Tells a vote that waited, if there was one.
    pub(crate) fn tell(self) {
        if let State::Waiting { done, .. } = self.transaction.state {
            done(Err(self.error));
        }
    }
}

/// What the maintenance has to do next.
pub(crate) enum MaintenanceTask {
    Check(PendingVote),
    /// A deadline has passed.
    GiveUp(TxnId, EndedTransaction),
    /// Nothing before this moment.
    Wait(Option<Duration>),
    Stop,
}

impl TransactionTable {
    pub(crate) fn new(config: StoreConfig) -> TransactionTable {
        TransactionTable {
            open: BTreeMap::new(),
            locks: LockTable::new(),
            granted: VecDeque::new(),
            deadlines: BTreeSet::new(),
            queue: Vec::new(),
            fencing: BTreeMap::new(),
            abort_reasons: AbortReasons::default(),
            stopping: false,
            soon: false,
            rest: Sleepers::default(),
            config,
            counters: Counters::default(),
        }
    }

    pub(crate) fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// Refuses whatever would write once the store is closing.
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

    /// The changes of a transaction, whatever its phase.
    pub(crate) fn changes(&self, txn: TxnId) -> Result<SharedChanges, RequestError> {
        self.open.get(&txn).map(|transaction| transaction.changes.clone()).ok_or_else(|| self.gone(txn))
    }

    /// Whether a transaction takes stores. The caller holds the lock of its changes, so this stays true until that
    /// is unlocked, or the transaction is gone.
    pub(crate) fn check_open(&self, txn: TxnId, changes: &SharedChanges) -> Result<(), RequestError> {
        match self.open.get(&txn).filter(|transaction| Arc::ptr_eq(&transaction.changes, changes)) {
            None => Err(self.gone(txn)),
            Some(OpenTransaction { state: State::Open, .. }) => Ok(()),
            Some(OpenTransaction { state: State::Doomed, .. }) => Err(RequestError::Doomed { txn }),
            Some(transaction) => Err(RequestError::WrongPhase { txn, phase: transaction.state.phase() }),
        }
    }

    /// A store has failed, or the name is taken: the transaction can only be aborted.
    pub(crate) fn doom(&mut self, txn: TxnId, changes: &SharedChanges) {
        if let Some(transaction) = self.transaction(txn, changes) {
            transaction.state = State::Doomed;
        }
    }

    /// Asks for the locks of a vote. The caller holds the lock of its changes. The vote comes back if it has its
    /// locks now; else it stays here until it is its turn.
    pub(crate) fn request_locks(
        &mut self,
        vote: PendingVote,
        oids: Arc<[Oid]>,
        now: Instant,
    ) -> Result<Option<PendingVote>, (PendingVote, RequestError)> {
        if let Err(error) = self.check_open(vote.txn, &vote.changes) {
            return Err((vote, error));
        }
        let PendingVote { txn, changes, done } = vote;
        let granted = self.locks.request(txn, oids.clone());
        let Some(transaction) = self.open.get_mut(&txn) else { return Ok(None) }; // it was there a moment ago
        transaction.oids = oids;
        if granted {
            transaction.state = State::Checking;
            self.soon = true;
            return Ok(Some(PendingVote { txn, changes, done }));
        }
        let deadline = now.checked_add(self.config.lock_timeout);
        transaction.state = State::Waiting { done, deadline };
        self.deadlines.extend(deadline.map(|deadline| (deadline, txn)));
        Ok(None)
    }

    /// Ends a vote: with locks kept until the deadline if there are no conflicts.
    pub(crate) fn finish_vote(
        &mut self,
        txn: TxnId,
        changes: &SharedChanges,
        checked: Result<Vec<Conflict>, RequestError>,
        now: Instant,
    ) -> Result<Vote, RequestError> {
        let deadline = now.checked_add(self.config.vote_timeout);
        let Some(transaction) = self.transaction(txn, changes) else {
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
                    let voted =
                        |transaction: &OpenTransaction| matches!(transaction.state, State::Voted { .. });
                    let another =
                        self.open.iter().find(|(_, transaction)| voted(transaction)).map(|(txn, _)| *txn);
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
        let Some(transaction) = self.open.get_mut(&txn) else { return Err((done, self.gone(txn))) };
        let State::Voted { deadline } = transaction.state else {
            let phase = transaction.state.phase();
            return Err((done, RequestError::WrongPhase { txn, phase }));
        };
        transaction.state = State::Finishing;
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, txn));
        }
        let work = Work::Commit {
            txn,
            meta: mem::take(&mut transaction.meta),
            changes: transaction.changes.clone(),
        };
        self.queue.push(Job { work, answer: Answer::Finish { txn, oids: transaction.oids.clone(), done } });
        Ok(())
    }

    /// Queues a question for an outcome. If the transaction is not being finished it ends here.
    pub(crate) fn outcome(
        &mut self,
        txn: TxnId,
        done: Done<Outcome>,
    ) -> Result<Option<EndedTransaction>, (Done<Outcome>, RequestError)> {
        if self.stopping {
            return Err((done, RequestError::Stopping));
        }
        if planted(Bug::OutcomeTooEarly)
            && self.open.get(&txn).is_some_and(|transaction| matches!(transaction.state, State::Finishing))
        {
            done(Ok(Outcome::NotCommitted));
            return Ok(None);
        }
        let ended = self.end(txn, Some("its outcome was asked for before it was finished"));
        *self.fencing.entry(txn).or_default() += 1;
        self.queue.push(Job { work: Work::Fence(txn), answer: Answer::Outcome { txn, done } });
        Ok(ended)
    }

    /// The name was fenced off, or found committed, or neither could be done.
    pub(crate) fn fenced(&mut self, txn: TxnId) {
        if let Some(jobs) = self.fencing.get_mut(&txn) {
            *jobs -= 1;
            if *jobs == 0 {
                self.fencing.remove(&txn);
            }
        }
    }

    /// Ends a transaction that is not being finished. The store's `reason`, if it has one, is remembered.
    pub(crate) fn end(&mut self, txn: TxnId, reason: Option<&str>) -> Option<EndedTransaction> {
        if matches!(self.open.get(&txn)?.state, State::Finishing) {
            return None;
        }
        self.counters.aborts += 1;
        self.remove(txn, reason.unwrap_or(BY_CLIENT), reason.is_some())
    }

    /// The commit is visible: its locks are free.
    pub(crate) fn committed(&mut self, txn: TxnId) -> Option<EndedTransaction> {
        self.counters.commits += 1;
        self.remove(txn, "it is committed", false)
    }

    /// The commit has failed.
    pub(crate) fn failed(&mut self, txn: TxnId, reason: &str) -> Option<EndedTransaction> {
        self.counters.aborts += 1;
        self.remove(txn, reason, true)
    }

    /// Who has to be called because of what has happened here.
    pub(crate) fn call(&mut self) -> Wake {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let soon = usize::from(mem::take(&mut self.soon));
        self.rest.call(self.queue.len().max(soon), !self.granted.is_empty(), deadline, self.stopping)
    }

    /// How many jobs there are for the committer; `None` when there will be no more.
    pub(crate) fn queued(&self) -> Option<usize> {
        if self.queue.is_empty() && self.stopping { None } else { Some(self.queue.len()) }
    }

    /// The committer waits to be called when so many jobs are queued.
    pub(crate) fn rest_until(&mut self, jobs: usize) {
        self.rest.committer(Some(jobs));
    }

    /// All jobs for the committer, in order.
    pub(crate) fn take_jobs(&mut self) -> Vec<Job> {
        self.rest.committer(None);
        mem::take(&mut self.queue)
    }

    /// Whether nothing new is begun.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// What the maintenance has to do next. If it is to wait, it rests.
    pub(crate) fn task(&mut self, now: Instant) -> MaintenanceTask {
        let task = self.next_task(now);
        self.rest.maintenance(match task {
            MaintenanceTask::Wait(time) => Some(time.and_then(|time| now.checked_add(time))),
            _ => None,
        });
        task
    }

    fn next_task(&mut self, now: Instant) -> MaintenanceTask {
        while let Some(txn) = self.granted.pop_front() {
            if let Some(vote) = self.turn(txn) {
                return MaintenanceTask::Check(vote);
            }
        }
        match self.deadlines.first().copied() {
            _ if self.stopping => MaintenanceTask::Stop,
            Some((deadline, txn)) if deadline <= now => {
                self.deadlines.pop_first();
                self.counters.timeouts += 1;
                match self.give_up(txn) {
                    Some(ended) => MaintenanceTask::GiveUp(txn, ended),
                    None => MaintenanceTask::Wait(Some(Duration::ZERO)),
                }
            }
            next => MaintenanceTask::Wait(next.map(|(deadline, _)| deadline - now)),
        }
    }

    /// Takes no more work, and ends all that is not being finished.
    pub(crate) fn stop(&mut self) -> Vec<EndedTransaction> {
        self.stopping = true;
        let open: Vec<TxnId> = self.open.keys().copied().collect();
        open.into_iter().filter_map(|txn| self.end(txn, Some("the server is stopping"))).collect()
    }

    /// The deadline of a transaction has passed. A vote that waits is told which; later calls hear of it, too.
    fn give_up(&mut self, txn: TxnId) -> Option<EndedTransaction> {
        if !matches!(self.open.get(&txn)?.state, State::Waiting { .. }) {
            return self.end(txn, Some("it was voted for, but not finished in time"));
        }
        let ended = self.end(txn, Some("its vote did not get its locks in time"))?;
        Some(EndedTransaction { error: Deadline::Locks.passed(self.config.lock_timeout), ..ended })
    }

    /// The vote of a transaction whose turn has come, if it still waits for it.
    fn turn(&mut self, txn: TxnId) -> Option<PendingVote> {
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

    fn transaction(&mut self, txn: TxnId, changes: &SharedChanges) -> Option<&mut OpenTransaction> {
        self.open.get_mut(&txn).filter(|transaction| Arc::ptr_eq(&transaction.changes, changes))
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
        Some(EndedTransaction {
            transaction,
            error: RequestError::Aborted { txn, reason: reason.to_owned() },
        })
    }

    fn unlock(&mut self, txn: TxnId) {
        self.granted.extend(self.locks.release(txn));
    }

    /// Why a transaction is not there.
    fn gone(&self, txn: TxnId) -> RequestError {
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

    fn vote(table: &mut TransactionTable, n: u8) -> PendingVote {
        let txn = TxnId([n; 16]);
        let changes = WriteSet::new(Spool::new(0, std::path::Path::new("")), 1, &Quota::new(1)).unwrap();
        table.begin(txn, TxnMeta::default(), changes).unwrap();
        PendingVote { txn, changes: table.changes(txn).unwrap(), done: Box::new(|_| ()) }
    }

    #[test]
    fn the_committer_is_called_when_a_vote_begins_that_need_not_wait() {
        let mut table = TransactionTable::new(StoreConfig::default());
        let oids: Arc<[Oid]> = [Oid(1)].into();
        table.rest_until(1);
        for (n, called) in [(1, true), (2, false)] {
            let vote = vote(&mut table, n);
            assert!(!table.call().committer);
            let voting = table.request_locks(vote, oids.clone(), Instant::now()).map_err(|(_, error)| error);
            assert_eq!(voting.unwrap().is_some(), called, "the second waits for its lock");
            assert_eq!(table.call().committer, called);
            table.rest_until(1);
        }
    }
}
