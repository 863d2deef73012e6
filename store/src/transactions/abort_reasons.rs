//! Why the store aborted transactions, so that later calls for them get the reason.

use blobferry_platform::bounded_map::BoundedMap;
use blobferry_protocol::TxnId;

/// The most transactions that are remembered.
const CAPACITY: usize = 4096;

/// The reasons of the newest aborts that the store decided itself.
pub(crate) struct AbortReasons(BoundedMap<TxnId, String>);

impl Default for AbortReasons {
    fn default() -> AbortReasons {
        AbortReasons(BoundedMap::new(CAPACITY))
    }
}

impl AbortReasons {
    pub(crate) fn reason(&self, txn: TxnId) -> Option<&str> {
        self.0.get(&txn).map(String::as_str)
    }

    pub(crate) fn remember(&mut self, txn: TxnId, reason: &str) {
        self.0.insert(txn, reason.to_owned());
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
        assert_eq!(reasons.0.len(), CAPACITY);
    }
}
