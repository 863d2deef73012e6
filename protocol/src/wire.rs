//! Framing: a little-endian `u32` length, then one message in postcard's format.
//!
//! [`decode`] does not trust what has arrived: it allocates nothing because of a length or a count,
//! and refuses bytes that are left over behind a message. It accepts everything that [`encode`]
//! writes.

#![warn(clippy::arithmetic_side_effects)]

use alloc::vec::Vec;

use crate::message::Message;

/// The size in bytes of the length field in front of every message.
pub const LENGTH_BYTES: usize = 4;

/// A message cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The body is longer than the caller allows.
    #[error("the message has {len} bytes, and at most {max} are allowed: send less in one message")]
    TooLong {
        /// The length of the body in bytes.
        len: u64,
        /// The limit in bytes.
        max: u32,
    },
    /// A list has more than [`Limits::LIST`](crate::Limits::LIST) elements.
    #[error("a list in the message has more than {} elements: send it in parts", crate::Limits::LIST)]
    ListTooLong,
}

/// A frame is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes are not a message of this version.
    #[error("the frame is not a message of this version")]
    Malformed,
    /// Bytes are left over behind the message.
    #[error("{0} bytes are left over behind the message")]
    Trailing(usize),
}

/// Appends a message to `out` as a frame: the length, then the body.
///
/// # Errors
/// [`EncodeError`] if the body is longer than `max` bytes or a list is too long. `out` is unchanged
/// then.
pub fn encode(message: &Message, max: u32, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    if postcard::to_extend(message, Appender(out)).is_err() {
        out.truncate(start);
        return Err(EncodeError::ListTooLong);
    }
    let frame = out.get_mut(start..).unwrap_or_default();
    let len = frame.len().saturating_sub(LENGTH_BYTES) as u64;
    match (u32::try_from(len), frame.first_chunk_mut()) {
        (Ok(len), Some(prefix)) if len <= max => {
            *prefix = len.to_le_bytes();
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(EncodeError::TooLong { len, max })
        }
    }
}

/// Lends a `Vec` to postcard, which takes by value what it extends.
struct Appender<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appender<'_> {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.0.extend(bytes);
    }
}

/// Decodes the body of a frame, without its length field.
///
/// # Errors
/// [`DecodeError`] if the body is not exactly one message.
pub fn decode(body: &[u8]) -> Result<Message, DecodeError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(DecodeError::Trailing(rest.len())),
        Err(_) => Err(DecodeError::Malformed),
    }
}

/// The kinds of message to a server that may be long: `Request` and `BlobAbort`.
///
/// They carry records, lists or texts. The first byte of a body is the number of its kind.
pub(crate) const LONG_TO_SERVERS: &[u8] = &[3, 9];

/// The kinds of message to a client that may be long: `Reply`, `Invalidate` and `BlobAbort`.
pub(crate) const LONG_TO_CLIENTS: &[u8] = &[4, 5, 9];
