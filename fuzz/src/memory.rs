//! How much memory something takes: no more than the bytes that were really there account for.

use allocation_counter::measure;

/// The most that a byte of input may cost. The worst there is: a list of pairs of a text and a number, two bytes each on
/// the wire and 32 in memory, while the `Vec` that holds them moves to one of twice the size.
const EACH: usize = 64;

/// Does it, and checks that at no time it took more than `fixed` bytes of memory and [`EACH`] for each of `input`.
pub(crate) fn bounded<T>(input: usize, fixed: usize, does: impl FnOnce() -> T) -> T {
    let mut done = None;
    let taken = measure(|| done = Some(does()));
    let most = fixed + input * EACH;
    assert!(taken.bytes_max <= most as u64, "{input} bytes took {} of memory", taken.bytes_max);
    done.expect("it was done")
}
