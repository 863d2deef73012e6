//! The strands of a connection's transactions. The changes of one transaction run in the order of its requests: inline,
//! on the thread that received them, if they are quick, otherwise on the pool.

use std::collections::{BTreeMap, BTreeSet};

use blobferry_platform::pool::{BlockingPool, Strand};
use blobferry_protocol::TxnId;

use crate::server::inline_policy::WorkBudget;

/// The most bytes of a blob or record that count as quick: they stay in memory, or go to a file without a sync.
pub(super) const QUICK_BYTES: u64 = 64 << 10;
/// The most objects of a transaction whose vote counts as quick.
const QUICK_OBJECTS: u64 = 32;

/// The strands of one connection's transactions.
pub(super) struct TransactionStrands {
    workers: BlockingPool,
    transactions: BTreeMap<TxnId, Transaction>,
}

/// The strand of a transaction, and the number of objects that were put into it.
struct Transaction {
    strand: Strand,
    objects: u64,
}

/// The next turn in a strand.
pub(super) struct Turn {
    strand: Strand,
    /// Whether the job is expected to be quick.
    is_quick: bool,
}

impl Turn {
    /// Runs a job behind everything before it: inline if it is quick and the budget allows it, otherwise on the pool.
    pub(super) fn run(self, budget: &mut WorkBudget, job: impl FnOnce() + Send + 'static) {
        if self.is_quick && budget.allows() {
            budget.run(|| self.strand.dispatch(job));
        } else {
            self.strand.post(job);
        }
    }

    /// Runs a job on the pool, behind everything before it.
    pub(super) fn run_on_pool(self, job: impl FnOnce() + Send + 'static) {
        self.strand.post(job);
    }
}

impl TransactionStrands {
    /// Creates an empty set.
    pub(super) fn new(workers: &BlockingPool) -> TransactionStrands {
        TransactionStrands { workers: workers.clone(), transactions: BTreeMap::new() }
    }

    /// Adds a transaction that was begun on another connection. Its size is unknown, so it counts as large.
    pub(super) fn attached(&mut self, txn: TxnId) {
        self.transaction(txn).objects = u64::MAX;
    }

    /// Returns the turn that puts an object with a record of `bytes` bytes into a transaction.
    pub(super) fn put(&mut self, txn: TxnId, bytes: u64) -> Turn {
        let strand = self.add_object(txn).strand.clone();
        Turn { strand, is_quick: bytes <= QUICK_BYTES }
    }

    /// Counts an object with a blob. It is put into the transaction when the blob has arrived, in a strand of its own.
    pub(super) fn upload(&mut self, txn: TxnId) {
        self.add_object(txn);
    }

    /// Returns the next turn of a transaction.
    pub(super) fn next(&mut self, txn: TxnId) -> Turn {
        let transaction = self.transaction(txn);
        Turn { strand: transaction.strand.clone(), is_quick: transaction.objects <= QUICK_OBJECTS }
    }

    /// Returns the last turn of a transaction, and forgets the transaction.
    pub(super) fn last(&mut self, txn: TxnId) -> Turn {
        let turn = self.next(txn);
        self.transactions.remove(&txn);
        turn
    }

    /// Returns the number of strands.
    pub(super) fn len(&self) -> usize {
        self.transactions.len()
    }

    /// Forgets all transactions but these.
    pub(super) fn retain(&mut self, open: &BTreeSet<TxnId>) {
        self.transactions.retain(|txn, _| open.contains(txn));
    }

    fn add_object(&mut self, txn: TxnId) -> &mut Transaction {
        let transaction = self.transaction(txn);
        transaction.objects = transaction.objects.saturating_add(1);
        transaction
    }

    fn transaction(&mut self, txn: TxnId) -> &mut Transaction {
        let TransactionStrands { workers, transactions } = self;
        transactions.entry(txn).or_insert_with(|| Transaction { strand: Strand::new(workers), objects: 0 })
    }
}
