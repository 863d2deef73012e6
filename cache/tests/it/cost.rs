//! The cost of a hit, in allocations: unlike time, they do not depend on other processes.

use crate::util::{blob, load, open};
use blobferry_cache::Claim;

#[test]
fn a_hit_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    drop(load(&cache, blob(1), 10_000).unwrap());
    // The first hit remembers that the file is verified.
    assert!(matches!(cache.claim(blob(1)).unwrap(), Claim::Hit(_)));
    let taken = allocation_counter::measure(|| {
        for _ in 0..100 {
            assert!(matches!(cache.claim(blob(1)).unwrap(), Claim::Hit(_)));
        }
    });
    assert_eq!(taken.count_total, 0);
}
