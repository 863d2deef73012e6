//! The choices that a target reads from its input, on top of [`arbitrary::Unstructured`].
//!
//! At the end of the input each choice has a default. A test fixes what bytes mean, because the corpora depend on it.

use arbitrary::Unstructured;

/// Reads the kinds of choices that the targets share.
pub(crate) trait Input<'a> {
    /// Returns the next byte, or `None` at the end.
    fn next_byte(&mut self) -> Option<u8>;

    /// Returns the next byte, or 0 at the end.
    fn byte(&mut self) -> u8;

    /// Returns a number below `end`, which is at least 2.
    fn below(&mut self, end: u8) -> u8;

    /// Returns the lowest bit of the next byte.
    fn flag(&mut self) -> bool;

    /// Returns one of several values, of which there are at least two.
    fn one_of<T: Copy>(&mut self, all: &[T]) -> T;

    /// Returns a number that is mostly small, and sometimes close to the limits of its type.
    fn number(&mut self) -> u64;

    /// Takes at most `max` bytes.
    fn up_to(&mut self, max: usize) -> &'a [u8];

    /// Takes a run of bytes whose length is the next byte, or what is left of it.
    fn prefixed(&mut self) -> &'a [u8];
}

impl<'a> Input<'a> for Unstructured<'a> {
    fn next_byte(&mut self) -> Option<u8> {
        (!self.is_empty()).then(|| self.byte())
    }

    fn byte(&mut self) -> u8 {
        self.arbitrary().expect("a byte at the end is 0")
    }

    fn below(&mut self, end: u8) -> u8 {
        self.int_in_range(0..=end - 1).expect("a number at the end is the least")
    }

    fn flag(&mut self) -> bool {
        self.arbitrary().expect("a flag at the end is false")
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        *self.choose(all).expect("there is something to choose from")
    }

    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => u64::MAX - u64::from(self.byte()),
            253 => 1 << (self.byte() % 64),
            byte => u64::from(byte),
        }
    }

    fn up_to(&mut self, max: usize) -> &'a [u8] {
        self.bytes(max.min(self.len())).expect("no more bytes than there are")
    }

    fn prefixed(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.up_to(len.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpora lose their meaning if a newer `arbitrary` reads bytes in another way.
    #[test]
    fn bytes_keep_the_meaning_that_corpora_rely_on() {
        let data = [7, 23, 3, 12, 1, 253, 65, 254, 2, 255, 2, 8, 9, 200, 5];
        let mut input = Unstructured::new(&data);
        assert_eq!(input.next_byte(), Some(7));
        assert_eq!(input.below(10), 3);
        assert!(input.flag());
        assert_eq!(input.one_of(&["a", "b", "c", "d", "e"]), "c");
        assert_eq!((input.number(), input.number()), (1, 2));
        assert_eq!((input.number(), input.number()), (u64::MAX - 2, u64::MAX));
        assert_eq!(input.prefixed(), [8, 9]);
        assert_eq!(input.prefixed(), [5]);
        assert_eq!((input.next_byte(), input.byte(), input.below(5), input.number()), (None, 0, 0, 0));
        assert_eq!((input.flag(), input.one_of(&[4, 5]), input.prefixed()), (false, 4, &[][..]));
    }
}
