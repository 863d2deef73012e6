//! Framing: a `u32` little-endian length, then one message in postcard.
//!
//! What arrives is not trusted: nothing is allocated because a length or a count says so, and no byte may be left
//! over behind a message.

use alloc::vec::Vec;

use crate::message::Message;

/// How many bytes of length stand before every message.
pub const LENGTH_BYTES: usize = 4;

/// Why a frame is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no message of this version.
    #[error("the frame is not a message of this version")]
    Malformed,
    /// Bytes are left over behind the message.
    #[error("{0} bytes are left over behind the message")]
    Trailing(usize),
}

/// Appends a message to `out` as a frame: length and body.
///
/// # Errors
/// The body's length, where it does not fit `max`; `out` is as before then.
pub fn encode(message: &Message, max: u32, out: &mut Vec<u8>) -> Result<(), u64> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    let body = start + LENGTH_BYTES;
    match postcard::to_extend(message, Appender(out)) {
        Ok(Appender(out)) => {
            let len = out.len() - body;
            match u32::try_from(len) {
                Ok(short) if short <= max => {
                    if let Some(prefix) = out.get_mut(start..body) {
                        prefix.copy_from_slice(&short.to_le_bytes());
                    }
                    Ok(())
                }
                _ => {
                    out.truncate(start);
                    Err(len as u64)
                }
            }
        }
        // No message type fails to serialize, and a Vec takes all bytes.
        Err(_) => Err(u64::MAX),
    }
}

/// Lends a `Vec` to postcard, which wants to own what it extends.
struct Appender<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appender<'_> {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.0.extend(bytes);
    }
}

/// Reads one message from a frame's body: all of it.
///
/// # Errors
/// Anything that is not exactly one message.
pub fn decode(body: &[u8]) -> Result<Message, DecodeError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(DecodeError::Trailing(rest.len())),
        Err(_) => Err(DecodeError::Malformed),
    }
}

/// Does this first byte of a body, the number of a message's kind, belong to one of the kinds that may be long?
/// Those that carry records, lists or texts: `Request`, `Reply`, `Invalidate` and `BlobAbort`.
pub(crate) fn may_be_long(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 9)
}

/// Lists that check their count before they allocate.
pub(crate) mod bounded {
    use alloc::vec::Vec;
    use core::fmt;
    use core::marker::PhantomData;

    use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

    use crate::limits::Limits;

    /// For `#[serde(deserialize_with = ...)]`: a list of at most [`Limits::LIST`] elements, which grows only as its
    /// elements really arrive.
    pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
        from.deserialize_seq(List(PhantomData))
    }

    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {} elements", Limits::LIST)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let count = seq.size_hint().unwrap_or(0);
            if count > Limits::LIST {
                return Err(A::Error::invalid_length(count, &self));
            }
            let mut list = Vec::with_capacity(count.min(64));
            while let Some(element) = seq.next_element()? {
                if list.len() == Limits::LIST {
                    return Err(A::Error::invalid_length(list.len() + 1, &self));
                }
                list.push(element);
            }
            Ok(list)
        }
    }
}
