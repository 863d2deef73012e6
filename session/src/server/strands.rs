//! The lanes of a connection's transactions: what changes one of them is done in the order of its requests, on the
//! thread that has heard of it where that is quick, and by a worker else.

use std::collections::{BTreeMap, BTreeSet};

use blobferry_platform::pool::{BlockingPool, Strand};
use blobferry_protocol::TxnId;

use crate::server::inline_policy::WorkBudget;

/// To put so many bytes into a transaction is quick: they stay in memory, or go to a file that is not synced.
pub(super) const QUICK: u64 = 64 << 10;
/// A vote on so many objects is quick.
const OBJECTS: u64 = 32;

/// The lanes of the transactions of one connection.
pub(super) struct TransactionStrands {
    workers: BlockingPool,
    loads: BTreeMap<TxnId, Load>,
}

/// A transaction's lane, and how many objects were put into the transaction.
struct Load {
    lane: Strand,
    objects: u64,
}

/// Where something is done in its turn.
pub(super) struct Place {
    lane: Strand,
    /// By its kind, and as far as is known.
    quick: bool,
}

impl Place {
    /// Does it when everything before it is done.
    pub(super) fn run(self, turn: &mut WorkBudget, job: impl FnOnce() + Send + 'static) {
        if self.quick && turn.allows() {
            turn.act(|| self.lane.dispatch(job));
        } else {
            self.lane.post(job);
        }
    }

    /// The same for what is slow by its kind.
    pub(super) fn run_slow(self, job: impl FnOnce() + Send + 'static) {
        self.lane.post(job);
    }
}

impl TransactionStrands {
    pub(super) fn new(workers: &BlockingPool) -> TransactionStrands {
        TransactionStrands { workers: workers.clone(), loads: BTreeMap::new() }
    }

    /// Nobody knows how large this transaction is: it was begun elsewhere.
    pub(super) fn unknown(&mut self, txn: TxnId) {
        self.load(txn).objects = u64::MAX;
    }

    /// Something of so many bytes is put into a transaction.
    pub(super) fn put(&mut self, txn: TxnId, bytes: u64) -> Place {
        let load = self.load(txn);
        load.objects = load.objects.saturating_add(1);
        Place { lane: load.lane.clone(), quick: bytes <= QUICK }
    }

    /// A blob is put into a transaction when it has arrived, in a lane of its own.
    pub(super) fn upload(&mut self, txn: TxnId) {
        let load = self.load(txn);
        load.objects = load.objects.saturating_add(1);
    }

    /// Something else is done with it.
    pub(super) fn place(&mut self, txn: TxnId) -> Place {
        let load = self.load(txn);
        Place { lane: load.lane.clone(), quick: load.objects <= OBJECTS }
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
        let TransactionStrands { workers, loads } = self;
        loads.entry(txn).or_insert_with(|| Load { lane: Strand::new(workers), objects: 0 })
    }
}
