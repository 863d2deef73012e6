//! What is asked most often costs next to nothing: counted, as clocks depend on who else is at work.

use crate::util::{blob, load, open};
use blobferry_cache::Claim;

#[test]
fn a_hit_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    drop(load(&cache, blob(1), 10_000).unwrap());
    // What is remembered of it is made with the first hit.
    assert!(matches!(cache.claim(blob(1)).unwrap(), Claim::Hit(_)));
    let taken = allocation_counter::measure(|| {
        for _ in 0..100 {
            assert!(matches!(cache.claim(blob(1)).unwrap(), Claim::Hit(_)));
        }
    });
    assert_eq!(taken.count_total, 0);
}
