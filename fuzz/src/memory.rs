//! Measures memory: a call must not allocate more than its input accounts for.

use allocation_counter::measure;

/// The most bytes of memory that a byte of input may cost. The worst case is a list of pairs of a
/// text and a number. A pair takes two bytes on the wire and 32 in memory, while the `Vec` moves to
/// twice the size.
const EACH: usize = 64;

/// Runs a closure, and checks that it never held more than `fixed` bytes of memory plus [`EACH`]
/// for each byte of `input`.
pub(crate) fn bounded<T>(input: usize, fixed: usize, does: impl FnOnce() -> T) -> T {
    let mut done = None;
    let taken = measure(|| done = Some(does()));
    let most = fixed + input * EACH;
    assert!(taken.bytes_max <= most as u64, "{input} bytes took {} of memory", taken.bytes_max);
    done.expect("it was done")
}
