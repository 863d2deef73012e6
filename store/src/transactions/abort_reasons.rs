//! Transactions that the store gave up: late calls are told why.

use std::collections::{BTreeMap, VecDeque};

use blobferry_protocol::TxnId;

/// How many transactions that the store gave up are remembered, to tell late calls why.
const REMEMBERED: usize = 4096;

/// Why the store gave up the last transactions that it gave up.
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
        if self.order.len() > REMEMBERED
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
        let mut given_up = AbortReasons::default();
        let txn = |n: usize| TxnId((n as u128).to_le_bytes());
        for n in 0..=REMEMBERED {
            given_up.remember(txn(n), "late");
        }
        assert_eq!(given_up.reason(txn(0)), None);
        assert_eq!(given_up.reason(txn(1)), Some("late"));
        assert_eq!(given_up.reasons.len(), REMEMBERED);
    }
}
