//! Transactions whose connection was lost: kept for a while with what has arrived of their blobs, until their client is
//! back and attaches them to another connection.
//!
//! A transaction that is open on a connection has a [`TransactionLease`]. Whoever works for it has a clone: the session, the sinks of
//! its blobs, the jobs in its lane. When the last one is gone, so is the connection, and all that had arrived on it is
//! dealt with. Then the transaction is over, or the [`DetachedTransactions`] has it, or it goes straight to the connection that waits
//! for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blobferry_platform::os;
use blobferry_platform::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use blobferry_protocol::{Oid, Reply, RequestError, RequestId, TxnId, Unfinished};

use crate::server::mailbox::{Mailbox, Message};
use blobferry_store::{Stage, Store};

/// Transactions that are kept at once. Beyond that the one that has waited longest is aborted.
const MOST: usize = 1000;

/// A transaction that is open on a connection.
pub(super) struct TransactionLease {
    keeper: Arc<DetachedTransactions>,
    txn: TxnId,
    /// Tells it from another one for a transaction of the same name, which may be begun again before this one is gone.
    number: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// It has ended, or will when the store has answered.
    over: bool,
    arrived: Arrived,
    /// What its client was told when it attached the transaction to this connection, and may not have heard: as long
    /// as it has made no request here.
    told: Option<(RequestId, Vec<Unfinished>)>,
}

/// What a connection leaves behind of a transaction.
#[derive(Default)]
struct Arrived {
    /// The last request in it.
    last: RequestId,
    /// Those that are not done.
    unfinished: BTreeSet<RequestId>,
    /// Blobs that have arrived in part.
    parts: BTreeMap<Oid, Part>,
}

/// A blob that has arrived in part.
pub(super) struct Part {
    /// The request that it was stored with.
    pub(super) request: RequestId,
    pub(super) stage: Box<dyn Stage>,
    /// Of the whole blob.
    pub(super) size: u64,
    /// So many bytes are staged.
    pub(super) written: u64,
}

impl TransactionLease {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A request that puts something into the transaction has arrived.
    pub(super) fn arrived(&self, request: RequestId) {
        let mut state = self.state();
        state.told = None;
        state.arrived.last = request;
        state.arrived.unfinished.insert(request);
    }

    /// It is done.
    pub(super) fn done(&self, request: RequestId) {
        self.state().arrived.unfinished.remove(&request);
    }

    /// The transaction.
    pub(super) fn txn(&self) -> TxnId {
        self.txn
    }

    /// Keeps a blob whose connection was lost. Of two for one object the later one counts.
    pub(super) fn keep(&self, oid: Oid, part: Part) {
        let mut state = self.state();
        let kept = state.arrived.parts.get(&oid);
        let replaced = match kept {
            Some(kept) if kept.request > part.request => Some(part),
            _ => state.arrived.parts.insert(oid, part),
        };
        drop(state);
        // Its file is removed outside of the lock.
        drop(replaced);
    }

    /// What is kept of a blob, for the upload that goes on with it.
    pub(super) fn take_part(&self, oid: Oid) -> Option<Part> {
        self.state().arrived.parts.remove(&oid)
    }

    /// The transaction has ended, or ends whatever becomes of the connection.
    pub(super) fn over(&self) {
        self.state().over = true;
    }

    /// What its client is told when the transaction is attached.
    pub(super) fn reply(&self) -> Reply {
        let (last, unfinished) = self.state().told.clone().unwrap_or_default();
        Reply::Attached { last, unfinished }
    }
}

impl Arrived {
    fn tell(&self) -> (RequestId, Vec<Unfinished>) {
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
        self.keeper.released(self.txn, self.number, state);
    }
}

/// Knows of every transaction on which connection it is, or that it is on none.
pub(super) struct DetachedTransactions {
    store: Arc<dyn Store>,
    time: Duration,
    places: Mutex<Places>,
    changed: Condvar,
}

#[derive(Default)]
struct Places {
    transactions: BTreeMap<TxnId, Place>,
    /// Those that are kept, in the order in which their time is over.
    kept: BTreeSet<(Instant, TxnId)>,
    /// A thread waits for the time of the first of them.
    waiting: bool,
    stopping: bool,
    /// Holds that there have been.
    holds: u64,
}

enum Place {
    /// On a connection; and another one waits for it.
    Held { by: Weak<Mailbox>, number: u64, next: Option<Next> },
    /// On none.
    Kept { until: Instant, state: State },
}

/// A connection that wants to go on with a transaction.
struct Next {
    mailbox: Weak<Mailbox>,
    id: RequestId,
}

impl Next {
    fn tell(self, attached: Result<Arc<TransactionLease>, RequestError>) {
        // Where nobody is there to hear it, the hold is released at once.
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.post(Message::Attached { id: self.id, attached });
        }
    }
}

impl DetachedTransactions {
    /// Keeps transactions for so long.
    pub(super) fn new(store: Arc<dyn Store>, time: Duration) -> Arc<DetachedTransactions> {
        Arc::new(DetachedTransactions { store, time, places: Mutex::default(), changed: Condvar::new() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock()
    }

    /// A transaction has begun on a connection.
    pub(super) fn hold(self: &Arc<Self>, txn: TxnId, by: &Arc<Mailbox>) -> Arc<TransactionLease> {
        self.held(&mut self.places(), txn, Arc::downgrade(by), State::default())
    }

    fn held(
        self: &Arc<Self>,
        places: &mut Places,
        txn: TxnId,
        by: Weak<Mailbox>,
        state: State,
    ) -> Arc<TransactionLease> {
        places.holds += 1;
        let number = places.holds;
        places.transactions.insert(txn, Place::Held { by, number, next: None });
        Arc::new(TransactionLease { keeper: self.clone(), txn, number, state: Mutex::new(state) })
    }

    /// A connection wants to go on with a transaction: it is told, sooner or later. A connection that has it still
    /// is given up.
    pub(super) fn attach(self: &Arc<Self>, txn: TxnId, id: RequestId, to: &Arc<Mailbox>) {
        let mailbox = Arc::downgrade(to);
        let next = Next { mailbox: mailbox.clone(), id };
        let unknown = || Err(RequestError::NoSuchTransaction { txn });
        let mut places = self.places();
        match places.transactions.remove(&txn) {
            None => {
                drop(places);
                next.tell(unknown());
            }
            Some(Place::Kept { until, state }) => {
                places.kept.remove(&(until, txn));
                let hold = self.held(&mut places, txn, mailbox, state);
                drop(places);
                next.tell(Ok(hold));
            }
            // It is over there: else the machine would have refused this.
            Some(place @ Place::Held { .. }) if place.is_on(to) => {
                places.transactions.insert(txn, place);
                drop(places);
                next.tell(unknown());
            }
            Some(Place::Held { by, number, next: before }) => {
                let owner = by.upgrade();
                places.transactions.insert(txn, Place::Held { by, number, next: Some(next) });
                drop(places);
                if let Some(before) = before {
                    before.tell(unknown());
                }
                if let Some(owner) = owner {
                    owner.post(Message::Replaced);
                }
            }
        }
    }

    /// Aborts a transaction that is on no connection.
    pub(super) fn abort(&self, txn: TxnId) {
        let mut places = self.places();
        if let Some(Place::Kept { until, .. }) = places.transactions.get(&txn) {
            let until = *until;
            places.kept.remove(&(until, txn));
            let kept = places.transactions.remove(&txn);
            drop(places);
            self.store.abort(txn);
            drop(kept);
        }
    }

    /// Everything that had to be done for a transaction on its connection is done.
    fn released(self: &Arc<Self>, txn: TxnId, number: u64, mut state: State) {
        let mut places = self.places();
        let next = match places.transactions.remove(&txn) {
            Some(Place::Held { number: now, next, .. }) if now == number => next,
            // Its name was used again: what is there now is another's.
            other => {
                places.transactions.extend(other.map(|place| (txn, place)));
                return;
            }
        };
        let told = state.told.take().unwrap_or_else(|| state.arrived.tell());
        match next {
            _ if state.over || places.stopping => {
                drop(places);
                if let Some(next) = next {
                    next.tell(Err(RequestError::NoSuchTransaction { txn }));
                }
                if !state.over {
                    self.store.abort(txn);
                }
            }
            Some(next) => {
                let state = State { told: Some(told), ..state.carried() };
                let hold = self.held(&mut places, txn, next.mailbox.clone(), state);
                drop(places);
                next.tell(Ok(hold));
            }
            None => {
                let state = State { told: Some(told), ..state.carried() };
                self.keep(places, txn, state);
            }
        }
    }

    fn keep(self: &Arc<Self>, mut places: MutexGuard<'_, Places>, txn: TxnId, state: State) {
        let until = os::now() + self.time;
        places.transactions.insert(txn, Place::Kept { until, state });
        places.kept.insert((until, txn));
        tracing::info!(%txn, "the connection of an open transaction was lost: it is kept for a while");
        let oldest = if places.kept.len() > MOST { places.kept.first().copied() } else { None };
        let start = !std::mem::replace(&mut places.waiting, true);
        drop(places);
        if let Some((_, oldest)) = oldest {
            self.abort(oldest);
        }
        if start {
            let keeper = self.clone();
            if os::register_step(move || keeper.abort_next()) {
                return;
            }
            let keeper = self.clone();
            let started = os::spawn("blobferry-keep", move || keeper.wait());
            if let Err(error) = started {
                tracing::error!(%error, "no thread to abort kept transactions in time");
                self.places().waiting = false;
            }
        }
    }

    /// Aborts what is kept when its time is over, until nothing is kept.
    fn wait(&self) {
        loop {
            match self.abort_next() {
                os::Next::Over => return,
                os::Next::At(until) => {
                    let places = self.places();
                    let now = os::now();
                    // What has come meanwhile has more time, and what has gone is looked for too early at worst.
                    if until > now && !places.kept.is_empty() {
                        drop(self.changed.wait_timeout(places, until - now));
                    }
                }
                os::Next::Now | os::Next::Waits => {}
            }
        }
    }

    /// Aborts what has been kept for too long, one by one.
    fn abort_next(&self) -> os::Next {
        let mut places = self.places();
        match places.kept.first().copied() {
            Some((until, txn)) if until <= os::now() => {
                drop(places);
                tracing::warn!(%txn, "aborted a transaction: its client did not come back in time");
                self.abort(txn);
                os::Next::Now
            }
            Some((until, _)) => os::Next::At(until),
            None => {
                places.waiting = false;
                os::Next::Over
            }
        }
    }

    /// How many are kept.
    pub(super) fn count(&self) -> u64 {
        self.places().kept.len() as u64
    }

    /// Keeps nothing any more.
    pub(super) fn stop(&self) {
        let mut places = self.places();
        places.stopping = true;
        let kept: Vec<TxnId> = std::mem::take(&mut places.kept).into_iter().map(|(_, txn)| txn).collect();
        let dropped: Vec<_> = kept.iter().map(|txn| places.transactions.remove(txn)).collect();
        drop(places);
        self.changed.notify_all();
        kept.into_iter().for_each(|txn| self.store.abort(txn));
        drop(dropped);
    }
}

impl State {
    /// What goes to the next connection: its requests have other numbers, from 1 on.
    fn carried(self) -> State {
        let unasked = |part| Part { request: RequestId::default(), ..part };
        let parts = self.arrived.parts.into_iter().map(|(oid, part)| (oid, unasked(part))).collect();
        let arrived = Arrived { parts, ..Arrived::default() };
        State { over: false, arrived, told: None }
    }
}

impl Place {
    fn is_on(&self, mailbox: &Arc<Mailbox>) -> bool {
        matches!(self, Place::Held { by, .. } if by.as_ptr() == Arc::as_ptr(mailbox))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_store::{MemoryStore, StoreConfig};

    #[test]
    fn a_name_that_is_used_again_is_not_let_go_of_with_who_had_it_before() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
        let keeper = DetachedTransactions::new(store, Duration::from_secs(60));
        let mailbox = Mailbox::new(Box::new(|| {}));
        let txn = TxnId([1; 16]);
        let before = keeper.hold(txn, &mailbox);
        before.over();
        let now = keeper.hold(txn, &mailbox);
        drop(before);
        assert_eq!(keeper.count(), 0);
        drop(now);
        assert_eq!(keeper.count(), 1, "it is kept for its client");
        keeper.stop();
    }

    #[test]
    fn a_blob_that_nobody_has_asked_to_go_on_with_yet_is_not_taken_for_another() {
        let store = MemoryStore::new(StoreConfig::default()).unwrap();
        let part = |request, written| {
            let (request, stage) = (RequestId(request), store.stage(100).unwrap());
            Part { request, stage, size: 100, written }
        };
        let mut before = State::default();
        before.arrived.parts.insert(Oid(1), part(6, 60));
        before.arrived.parts.insert(Oid(2), part(5, 50));
        // The next connection is lost when only the first of them was asked for again, by another number.
        let mut state = before.carried();
        let kept = state.arrived.parts.remove(&Oid(2)).unwrap();
        state.arrived.unfinished.insert(RequestId(6));
        state.arrived.parts.insert(Oid(2), Part { request: RequestId(6), ..kept });
        let (_, told) = state.arrived.tell();
        assert_eq!(told, [Unfinished { request: RequestId(6), upto: 50 }]);
        assert_eq!(state.arrived.parts[&Oid(1)].written, 60);
    }
}
