//! Why the store aborted transactions, so that later calls for them get the reason.

use std::collections::{BTreeMap, VecDeque};

use blobferry_protocol::TxnId;

/// The most transactions that are remembered.
const CAPACITY: usize = 4096;

/// The reasons of the newest aborts that the store decided itself.
#[derive(Default)]
pub(crate) struct AbortReasons {
    reasons: BTreeMap<TxnId, String>,
    order: VecDeque<TxnId>,
}

impl AbortReasons {
    pub(crate) fn reason(&self, txn: TxnId) -> Option<&str> {
        self.reasons.get(&txn).map(String::as_str)
    }

    pub(crate) fn remember(&mut self, txn: TxnId, reason: &str) {
        if self.reasons.insert(txn, reason.to_owned()).is_none() {
            self.order.push_back(txn);
        }
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.reasons.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_abort_reasons_are_remembered() {
        let mut reasons = AbortReasons::default();
        let txn = |n: usize| TxnId((n as u128).to_le_bytes());
        for n in 0..=CAPACITY {
            reasons.remember(txn(n), "late");
        }
        assert_eq!(reasons.reason(txn(0)), None);
        assert_eq!(reasons.reason(txn(1)), Some("late"));
        assert_eq!(reasons.reasons.len(), CAPACITY);
    }
}
