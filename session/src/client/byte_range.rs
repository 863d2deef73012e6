//! Any kind of range of byte offsets, as the half-open one that the protocol has.

use std::ops::{Bound, Range, RangeBounds};

/// Converts a range of byte offsets into a half-open one. A range without an end goes to `u64::MAX`, which stands for
/// the end of the blob.
#[must_use]
pub fn byte_range(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_range_is_converted() {
        assert_eq!(byte_range(&(3..7)), 3..7);
        assert_eq!(byte_range(&(3..=7)), 3..8);
        assert_eq!(byte_range(&(..7)), 0..7);
        assert_eq!(byte_range(&(3..)), 3..u64::MAX);
        assert_eq!(byte_range(&..), 0..u64::MAX);
        assert_eq!(byte_range(&(Bound::Excluded(3), Bound::Included(u64::MAX))), 4..u64::MAX);
    }
}
