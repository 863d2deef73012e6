//! Bytes to messages: finds frames in a stream that is cut anywhere, and stops at payload.

use alloc::vec::Vec;

use super::{Expect, Slice};
use crate::error::{PeerError, UsageError};
use crate::limits::Limits;
use crate::message::Message;
use crate::wire::{self, LENGTH_BYTES};

/// Where in the stream the next byte belongs.
#[derive(Debug, Default)]
pub(crate) struct Receive {
    /// A frame that has begun to arrive: its length bytes, then its body.
    frame: Vec<u8>,
    /// Payload that is still to come before the next frame.
    payload: Option<Slice>,
}

impl Receive {
    pub(crate) fn expect(&self) -> Expect {
        match self.payload {
            Some(slice) => Expect::Payload(slice),
            None => Expect::Control { max: self.missing() },
        }
    }

    /// How many bytes are sure to belong to the frame that is arriving.
    fn missing(&self) -> usize {
        match frame_length(&self.frame) {
            None => LENGTH_BYTES - self.frame.len(),
            Some(len) => (LENGTH_BYTES + len as usize).saturating_sub(self.frame.len()).max(1),
        }
    }

    pub(crate) fn payload_follows(&mut self, slice: Slice) {
        self.payload = Some(slice);
    }

    /// Counts payload; gives the slice that it was a part of.
    pub(crate) fn payload_moved(&mut self, n: u64) -> Result<Option<Slice>, UsageError> {
        let expected = self.payload.map_or(0, |slice| slice.len);
        if n > expected {
            return Err(UsageError::NotExpected { moved: n, expected });
        }
        let before = self.payload;
        self.payload = self.payload.and_then(|slice| {
            let rest = Slice { offset: slice.offset + n, len: slice.len - n, ..slice };
            (rest.len > 0).then_some(rest)
        });
        Ok(before)
    }

    /// Takes bytes up to the end of at most one frame: how many, and the message if it is complete now.
    pub(crate) fn take(&mut self, bytes: &[u8], max: u32) -> Result<(usize, Option<Message>), PeerError> {
        if self.payload.is_some() {
            return Ok((0, None));
        }
        if self.frame.is_empty() {
            // The usual case: the whole frame is here, and is read where it lies.
            if let Some(len) = frame_length(bytes) {
                let end = LENGTH_BYTES + len as usize;
                let body = bytes.get(LENGTH_BYTES..end.min(bytes.len())).unwrap_or_default();
                check_length(len, body.first().copied(), max)?;
                if end <= bytes.len() {
                    return Ok((end, Some(wire::decode(body)?)));
                }
            }
        }
        let mut used = 0;
        // Two steps: the length, then the body.
        for _ in 0..2 {
            let n = self.missing().min(bytes.len() - used);
            self.frame.extend_from_slice(bytes.get(used..used + n).unwrap_or_default());
            used += n;
            let Some(len) = frame_length(&self.frame) else { return Ok((used, None)) };
            check_length(len, self.frame.get(LENGTH_BYTES).copied(), max)?;
            if self.frame.len() == LENGTH_BYTES + len as usize {
                let message = wire::decode(self.frame.get(LENGTH_BYTES..).unwrap_or_default())?;
                // A long frame's memory is not kept for the short ones that follow.
                if len > Limits::SMALL_FRAME {
                    self.frame = Vec::new();
                } else {
                    self.frame.clear();
                }
                return Ok((used, Some(message)));
            }
        }
        Ok((used, None))
    }
}

/// The length that a frame begins with, where it is complete.
fn frame_length(frame: &[u8]) -> Option<u32> {
    frame.first_chunk::<LENGTH_BYTES>().map(|length| u32::from_le_bytes(*length))
}

/// Only the kinds of message that carry records, lists or texts may be long: told by the first byte of the body,
/// which is the number of the kind.
fn check_length(len: u32, kind: Option<u8>, max: u32) -> Result<(), PeerError> {
    let max = match kind {
        None => max,
        Some(kind) if wire::may_be_long(kind) => max,
        Some(_) => max.min(Limits::SMALL_FRAME),
    };
    if len > max { Err(PeerError::FrameTooLong { len, max }) } else { Ok(()) }
}
