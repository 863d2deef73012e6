//! Detached transactions: their connection was lost, and the server holds them with what has arrived of their blobs
//! until their client attaches them to another connection.
//!
//! An open transaction on a connection has a [`TransactionLease`]. Everything that works for it has a clone: the handler,
//! the sinks of its blobs, the jobs in its strand. When the last clone is dropped, the connection is gone, and everything
//! that arrived on it is processed. Then the transaction has ended, or a waiting connection gets it, or
//! [`DetachedTransactions`] holds it until [`detach_timeout`](super::ServerConfig::detach_timeout).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blobferry_platform::os;
use blobferry_platform::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use blobferry_protocol::{Oid, Reply, RequestError, RequestId, TxnId, Unfinished};
use blobferry_store::{Stage, Store};

/// Detached transactions at once, at most. Beyond that the one that has waited longest is aborted.
const MAX_DETACHED: usize = 1000;

/// A connection that transactions can be attached to.
pub(super) trait Attachable: Send + Sync {
    /// Delivers the answer to a request to attach a transaction.
    fn attached(&self, id: RequestId, attached: Result<Arc<TransactionLease>, RequestError>);

    /// Notifies the connection that its client goes on with a transaction on another one.
    fn replaced(&self);
}

/// The right to work for a transaction that is open on a connection.
pub(super) struct TransactionLease {
    detached: Arc<DetachedTransactions>,
    txn: TxnId,
    /// Distinguishes leases of transactions with the same name: a name may be used again before the first lease is
    /// dropped.
    number: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The transaction has ended, or will when the store has answered.
    is_over: bool,
    arrived: Arrived,
    /// The report that the client got when it attached the transaction to this connection. It may have been lost, until
    /// a request in the transaction has arrived here.
    last_report: Option<(RequestId, Vec<Unfinished>)>,
}

/// What a connection leaves behind of a transaction.
#[derive(Default)]
struct Arrived {
    /// The last request in the transaction.
    last: RequestId,
    /// The requests that are not done.
    unfinished: BTreeSet<RequestId>,
    /// Blobs that have arrived in part.
    parts: BTreeMap<Oid, Part>,
}

/// A blob that has arrived in part.
pub(super) struct Part {
    /// The request that stores the blob.
    pub(super) request: RequestId,
    pub(super) stage: Box<dyn Stage>,
    /// The size of the whole blob, in bytes.
    pub(super) size: u64,
    /// Bytes that are staged.
    pub(super) written: u64,
}

impl TransactionLease {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Notes that a request has arrived that puts something into the transaction.
    pub(super) fn arrived(&self, request: RequestId) {
        let mut state = self.state();
        state.last_report = None;
        state.arrived.last = request;
        state.arrived.unfinished.insert(request);
    }

    /// Notes that a request is done.
    pub(super) fn done(&self, request: RequestId) {
        self.state().arrived.unfinished.remove(&request);
    }

    /// Returns the name of the transaction.
    pub(super) fn txn(&self) -> TxnId {
        self.txn
    }

    /// Retains the part of a blob that has arrived when the connection was lost. Of two parts for one object the later
    /// request's is retained.
    pub(super) fn retain_part(&self, oid: Oid, part: Part) {
        let mut state = self.state();
        let retained = state.arrived.parts.get(&oid);
        let replaced = match retained {
            Some(retained) if retained.request > part.request => Some(part),
            _ => state.arrived.parts.insert(oid, part),
        };
        drop(state);
        // Outside of the lock, because it deletes a file.
        drop(replaced);
    }

    /// Takes the retained part of a blob, for the upload that resumes it.
    pub(super) fn take_part(&self, oid: Oid) -> Option<Part> {
        self.state().arrived.parts.remove(&oid)
    }

    /// Marks the transaction as finished, so that losing the connection does not detach it.
    pub(super) fn end(&self) {
        self.state().is_over = true;
    }

    /// Returns the answer to the request that attached the transaction.
    pub(super) fn reply(&self) -> Reply {
        let (last, unfinished) = self.state().last_report.clone().unwrap_or_default();
        Reply::Attached { last, unfinished }
    }
}

impl Arrived {
    /// Returns the last request, and how far each unfinished one has arrived.
    fn report(&self) -> (RequestId, Vec<Unfinished>) {
        let upto = |request| {
            let part = self.parts.values().find(|part| part.request == request);
            part.map_or(0, |part| part.written)
        };
        let unfinished = self.unfinished.iter().map(|&request| Unfinished { request, upto: upto(request) });
        (self.last, unfinished.collect())
    }
}

impl Drop for TransactionLease {
    fn drop(&mut self) {
        let state = std::mem::take(self.state.get_mut());
        self.detached.released(self.txn, self.number, state);
    }
}

/// Where each open transaction is: on which connection, or detached.
pub(super) struct DetachedTransactions {
    store: Arc<dyn Store>,
    timeout: Duration,
    places: Mutex<Places>,
    changed: Condvar,
}

#[derive(Default)]
struct Places {
    transactions: BTreeMap<TxnId, Place>,
    /// The detached transactions, in the order in which they expire.
    detached: BTreeSet<(Instant, TxnId)>,
    /// A thread waits until the first of them expires.
    is_waiting: bool,
    is_stopping: bool,
    /// The number of leases until now.
    leases: u64,
}

enum Place {
    /// On a connection. Another one may wait for it.
    Leased { by: Weak<dyn Attachable>, number: u64, next: Option<Next> },
    /// On none.
    Detached { until: Instant, state: State },
}

/// A connection that waits for a transaction.
struct Next {
    connection: Weak<dyn Attachable>,
    id: RequestId,
}

impl Next {
    fn answer(self, attached: Result<Arc<TransactionLease>, RequestError>) {
        // If the connection is gone, the lease is released at once.
        if let Some(connection) = self.connection.upgrade() {
            connection.attached(self.id, attached);
        }
    }
}

impl DetachedTransactions {
    /// Holds each detached transaction for at most `timeout`.
    pub(super) fn new(store: Arc<dyn Store>, timeout: Duration) -> Arc<DetachedTransactions> {
        Arc::new(DetachedTransactions { store, timeout, places: Mutex::default(), changed: Condvar::new() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock()
    }

    /// Registers a transaction that has begun on a connection.
    pub(super) fn lease(
        self: &Arc<Self>,
        txn: TxnId,
        by: &Arc<impl Attachable + 'static>,
    ) -> Arc<TransactionLease> {
        self.leased(&mut self.places(), txn, weak(by), State::default())
    }

    fn leased(
        self: &Arc<Self>,
        places: &mut Places,
        txn: TxnId,
        by: Weak<dyn Attachable>,
        state: State,
    ) -> Arc<TransactionLease> {
        places.leases += 1;
        let number = places.leases;
        places.transactions.insert(txn, Place::Leased { by, number, next: None });
        Arc::new(TransactionLease { detached: self.clone(), txn, number, state: Mutex::new(state) })
    }

    /// Attaches a transaction to a connection, which gets its answer now or later. If another connection still has the
    /// transaction, that one is closed.
    pub(super) fn attach(self: &Arc<Self>, txn: TxnId, id: RequestId, to: &Arc<impl Attachable + 'static>) {
        let connection = weak(to);
        let next = Next { connection: connection.clone(), id };
        let unknown = || Err(RequestError::NoSuchTransaction { txn });
        let mut places = self.places();
        match places.transactions.remove(&txn) {
            None => {
                drop(places);
                next.answer(unknown());
            }
            Some(Place::Detached { until, state }) => {
                places.detached.remove(&(until, txn));
                let lease = self.leased(&mut places, txn, connection, state);
                drop(places);
                next.answer(Ok(lease));
            }
            // The transaction has ended there: otherwise the machine would have refused the request.
            Some(place @ Place::Leased { .. }) if place.is_on(&connection) => {
                places.transactions.insert(txn, place);
                drop(places);
                next.answer(unknown());
            }
            Some(Place::Leased { by, number, next: before }) => {
                let owner = by.upgrade();
                places.transactions.insert(txn, Place::Leased { by, number, next: Some(next) });
                drop(places);
                if let Some(before) = before {
                    before.answer(unknown());
                }
                if let Some(owner) = owner {
                    owner.replaced();
                }
            }
        }
    }

    /// Aborts a transaction if it is detached.
    pub(super) fn abort(&self, txn: TxnId) {
        let mut places = self.places();
        if let Some(Place::Detached { until, .. }) = places.transactions.get(&txn) {
            let until = *until;
            places.detached.remove(&(until, txn));
            let removed = places.transactions.remove(&txn);
            drop(places);
            self.store.abort(txn);
            drop(removed);
        }
    }

    /// Handles the end of the last lease of a transaction.
    fn released(self: &Arc<Self>, txn: TxnId, number: u64, mut state: State) {
        let mut places = self.places();
        let next = match places.transactions.remove(&txn) {
            Some(Place::Leased { number: now, next, .. }) if now == number => next,
            // The name was used again: the entry belongs to another transaction.
            other => {
                places.transactions.extend(other.map(|place| (txn, place)));
                return;
            }
        };
        let report = state.last_report.take().unwrap_or_else(|| state.arrived.report());
        match next {
            _ if state.is_over || places.is_stopping => {
                drop(places);
                if let Some(next) = next {
                    next.answer(Err(RequestError::NoSuchTransaction { txn }));
                }
                if !state.is_over {
                    self.store.abort(txn);
                }
            }
            Some(next) => {
                let state = State { last_report: Some(report), ..state.carried() };
                let lease = self.leased(&mut places, txn, next.connection.clone(), state);
                drop(places);
                next.answer(Ok(lease));
            }
            None => {
                let state = State { last_report: Some(report), ..state.carried() };
                self.detach(places, txn, state);
            }
        }
    }

    fn detach(self: &Arc<Self>, mut places: MutexGuard<'_, Places>, txn: TxnId, state: State) {
        let until = os::now() + self.timeout;
        places.transactions.insert(txn, Place::Detached { until, state });
        places.detached.insert((until, txn));
        tracing::info!(target: "blobferry::server", %txn, "the connection of an open transaction was lost: it waits for its client");
        let oldest =
            if places.detached.len() > MAX_DETACHED { places.detached.first().copied() } else { None };
        let start = !std::mem::replace(&mut places.is_waiting, true);
        drop(places);
        if let Some((_, oldest)) = oldest {
            self.abort(oldest);
        }
        if start {
            let detached = self.clone();
            if os::register_step(move || detached.abort_next()) {
                return;
            }
            let detached = self.clone();
            let started = os::spawn("blobferry-detach", move || detached.wait());
            if let Err(error) = started {
                tracing::error!(target: "blobferry::server", %error, "no thread to abort detached transactions in time");
                self.places().is_waiting = false;
            }
        }
    }

    /// Aborts detached transactions as they expire, until there are none.
    fn wait(&self) {
        loop {
            match self.abort_next() {
                os::Next::Over => return,
                os::Next::At(until) => {
                    let places = self.places();
                    let now = os::now();
                    // A transaction that was detached meanwhile expires later. If one has gone, this wakes too early,
                    // which does no harm.
                    if until > now && !places.detached.is_empty() {
                        drop(self.changed.wait_timeout(places, until - now));
                    }
                }
                os::Next::Now | os::Next::Waits => {}
            }
        }
    }

    /// Aborts the first detached transaction if it has expired.
    fn abort_next(&self) -> os::Next {
        let mut places = self.places();
        match places.detached.first().copied() {
            Some((until, txn)) if until <= os::now() => {
                drop(places);
                tracing::warn!(target: "blobferry::server", %txn, "aborted a transaction: its client did not come back in time");
                self.abort(txn);
                os::Next::Now
            }
            Some((until, _)) => os::Next::At(until),
            None => {
                places.is_waiting = false;
                os::Next::Over
            }
        }
    }

    /// Returns the number of detached transactions.
    pub(super) fn count(&self) -> u64 {
        self.places().detached.len() as u64
    }

    /// Aborts all detached transactions, and detaches none from now on.
    pub(super) fn stop(&self) {
        let mut places = self.places();
        places.is_stopping = true;
        let expired: Vec<TxnId> =
            std::mem::take(&mut places.detached).into_iter().map(|(_, txn)| txn).collect();
        let dropped: Vec<_> = expired.iter().map(|txn| places.transactions.remove(txn)).collect();
        drop(places);
        self.changed.notify_all();
        expired.into_iter().for_each(|txn| self.store.abort(txn));
        drop(dropped);
    }
}

impl State {
    /// Returns what goes to the next connection. Its requests have other numbers, so the old ones are cleared.
    fn carried(self) -> State {
        let unrequested = |part| Part { request: RequestId::default(), ..part };
        let parts = self.arrived.parts.into_iter().map(|(oid, part)| (oid, unrequested(part))).collect();
        let arrived = Arrived { parts, ..Arrived::default() };
        State { is_over: false, arrived, last_report: None }
    }
}

impl Place {
    fn is_on(&self, connection: &Weak<dyn Attachable>) -> bool {
        matches!(self, Place::Leased { by, .. } if std::ptr::addr_eq(by.as_ptr(), connection.as_ptr()))
    }
}

fn weak(connection: &Arc<impl Attachable + 'static>) -> Weak<dyn Attachable> {
    Arc::<_>::downgrade(connection) as Weak<dyn Attachable>
}

#[cfg(test)]
mod tests {
    use blobferry_store::{MemoryStore, StoreConfig};

    use super::*;

    struct Connection;

    impl Attachable for Connection {
        fn attached(&self, _: RequestId, _: Result<Arc<TransactionLease>, RequestError>) {}
        fn replaced(&self) {}
    }

    #[test]
    fn reused_name_survives_the_end_of_the_earlier_lease() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
        let detached = DetachedTransactions::new(store, Duration::from_secs(60));
        let connection = Arc::new(Connection);
        let txn = TxnId([1; 16]);
        let before = detached.lease(txn, &connection);
        before.end();
        let now = detached.lease(txn, &connection);
        drop(before);
        assert_eq!(detached.count(), 0);
        drop(now);
        assert_eq!(detached.count(), 1, "it waits for its client");
        detached.stop();
    }

    #[test]
    fn part_not_requested_again_is_not_reported_as_another() {
        let store = MemoryStore::new(StoreConfig::default()).unwrap();
        let part = |request, written| {
            let (request, stage) = (RequestId(request), store.stage(100).unwrap());
            Part { request, stage, size: 100, written }
        };
        let mut before = State::default();
        before.arrived.parts.insert(Oid(1), part(6, 60));
        before.arrived.parts.insert(Oid(2), part(5, 50));
        // The next connection is lost when only one of the blobs was requested again, with another number.
        let mut state = before.carried();
        let part = state.arrived.parts.remove(&Oid(2)).unwrap();
        state.arrived.unfinished.insert(RequestId(6));
        state.arrived.parts.insert(Oid(2), Part { request: RequestId(6), ..part });
        let (_, report) = state.arrived.report();
        assert_eq!(report, [Unfinished { request: RequestId(6), upto: 50 }]);
        assert_eq!(state.arrived.parts[&Oid(1)].written, 60);
    }
}
