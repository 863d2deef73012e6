//! The lanes of a connection's transactions: what changes one of them is done in the order of its requests, on the
//! thread that has heard of it where that is quick, and by a worker else.

use std::collections::{BTreeMap, BTreeSet};

use blobferry_cache::sync::Arc;
use blobferry_cache::sync::atomic::{AtomicU64, Ordering};
use blobferry_cache::workers::{Lane, Workers};
use blobferry_protocol::TxnId;

use super::pace::Turn;

/// So many bytes of a transaction are staged without a look at the disk: they stay in memory.
const BYTES: u64 = 48 << 10;
/// A vote on so many objects is quick.
const OBJECTS: u64 = 32;

/// The lanes of the transactions of one connection.
pub(super) struct Lanes {
    workers: Workers,
    loads: BTreeMap<TxnId, Load>,
}

/// A transaction's lane, and what was put into the transaction.
struct Load {
    lane: Lane,
    objects: u64,
    weight: Weight,
}

/// The bytes that were put into a transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct Weight(Arc<AtomicU64>);

impl Weight {
    /// So many more are put into it: whether all of them are few.
    pub(super) fn add(&self, bytes: u64) -> bool {
        self.0.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= BYTES
    }
}

/// Where something is done in its turn.
pub(super) struct Place {
    lane: Lane,
    /// By its kind, and as far as is known.
    quick: bool,
}

impl Place {
    /// Does it when everything before it is done.
    pub(super) fn run(self, turn: &mut Turn, job: impl FnOnce() + Send + 'static) {
        if self.quick && turn.allows() {
            turn.act(|| self.lane.run_in_turn(job));
        } else {
            self.lane.run(job);
        }
    }

    /// The same for what is slow by its kind.
    pub(super) fn run_slow(self, job: impl FnOnce() + Send + 'static) {
        self.lane.run(job);
    }
}

impl Lanes {
    pub(super) fn new(workers: &Workers) -> Lanes {
        Lanes { workers: workers.clone(), loads: BTreeMap::new() }
    }

    /// Nobody knows how large this transaction is: it was begun elsewhere.
    pub(super) fn unknown(&mut self, txn: TxnId) {
        self.load(txn).objects = u64::MAX;
    }

    /// Something of so many bytes is put into a transaction.
    pub(super) fn put(&mut self, txn: TxnId, bytes: u64) -> Place {
        let load = self.load(txn);
        load.objects = load.objects.saturating_add(1);
        load.weight.add(bytes);
        self.place(txn)
    }

    /// A record of so many bytes is put into a transaction when its blob has arrived, in a lane of the blob's own.
    pub(super) fn upload(&mut self, txn: TxnId, bytes: u64) -> Weight {
        self.put(txn, bytes);
        self.load(txn).weight.clone()
    }

    /// Something else is done with it.
    pub(super) fn place(&mut self, txn: TxnId) -> Place {
        let load = self.load(txn);
        Place { lane: load.lane.clone(), quick: load.objects <= OBJECTS && load.weight.add(0) }
    }

    /// The last thing is done with it.
    pub(super) fn last(&mut self, txn: TxnId) -> Place {
        let place = self.place(txn);
        self.loads.remove(&txn);
        place
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.loads.len()
    }

    /// Lets go of all but these.
    pub(super) fn retain(&mut self, open: &BTreeSet<TxnId>) {
        self.loads.retain(|txn, _| open.contains(txn));
    }

    fn load(&mut self, txn: TxnId) -> &mut Load {
        let Lanes { workers, loads } = self;
        let new = || Load { lane: Lane::new(workers), objects: 0, weight: Weight::default() };
        loads.entry(txn).or_insert_with(new)
    }
}
