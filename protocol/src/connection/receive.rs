//! From bytes to messages: finds the frames in a stream that is cut anywhere, and stops at payload.

#![warn(clippy::arithmetic_side_effects)]

use alloc::vec::Vec;

use crate::connection::transfer::{Expect, Slice};
use crate::error::{PeerError, UsageError};
use crate::limits::Limits;
use crate::message::Message;
use crate::wire;
use crate::wire::{DecodeError, LENGTH_BYTES};

/// The position in the stream: in a frame, or in payload.
#[derive(Debug, Default)]
pub(crate) struct Receive {
    /// A frame that has begun to arrive: its length bytes, then its body.
    frame: Vec<u8>,
    /// Payload that is still to come before the next frame.
    payload: Option<Slice>,
    /// A message has arrived: the peer speaks this protocol.
    greeted: bool,
}

impl Receive {
    pub(crate) fn expect(&self) -> Expect {
        match self.payload {
            Some(slice) => Expect::Payload(slice),
            None => Expect::Control { max: self.missing() },
        }
    }

    /// Returns how many of the next bytes certainly belong to the current frame.
    fn missing(&self) -> usize {
        frame_end(&self.frame).unwrap_or(LENGTH_BYTES).saturating_sub(self.frame.len())
    }

    pub(crate) fn payload_follows(&mut self, slice: Slice) {
        self.payload = Some(slice);
    }

    /// Counts `n` bytes of payload, and returns the slice that they begin.
    pub(crate) fn payload_moved(&mut self, n: u64) -> Result<Option<Slice>, UsageError> {
        let expected = self.payload.map_or(0, |slice| slice.len);
        if n > expected {
            return Err(UsageError::NotExpected { moved: n, expected });
        }
        let before = self.payload;
        self.payload = self.payload.and_then(|slice| {
            // No overflow: `n` is at most the length, as was just checked.
            let (offset, len) = (slice.offset.saturating_add(n), slice.len.saturating_sub(n));
            (len > 0).then_some(Slice { offset, len, ..slice })
        });
        Ok(before)
    }

    /// Takes bytes up to the end of at most one frame. Returns their number, and the message if it
    /// is complete.
    ///
    /// No frame may be longer than `max`, and only the kinds in `long` longer than
    /// [`Limits::SMALL_FRAME`].
    pub(crate) fn take(
        &mut self,
        bytes: &[u8],
        max: u32,
        long: &[u8],
    ) -> Result<(usize, Option<Message>), PeerError> {
        if self.payload.is_some() {
            return Ok((0, None));
        }
        if self.frame.is_empty() {
            // The usual case: the whole frame is in `bytes`, and is decoded without a copy.
            self.check(bytes, max, long)?;
            if let Some(frame) = frame_end(bytes).and_then(|end| bytes.get(..end)) {
                let message = decode(frame)?;
                self.greeted = true;
                return Ok((frame.len(), Some(message)));
            }
        }
        let mut used: usize = 0;
        // First the length, then the body.
        for _ in 0..2 {
            let rest = bytes.get(used..).unwrap_or_default();
            let more = rest.get(..self.missing()).unwrap_or(rest);
            self.frame.extend_from_slice(more);
            used = used.saturating_add(more.len());
            self.check(&self.frame, max, long)?;
        }
        if frame_end(&self.frame) != Some(self.frame.len()) {
            return Ok((used, None));
        }
        let message = decode(&self.frame)?;
        self.greeted = true;
        // The memory of a long frame is not kept for the short ones that follow.
        if self.frame.capacity() > Limits::SMALL_FRAME as usize {
            self.frame = Vec::new();
        } else {
            self.frame.clear();
        }
        Ok((used, Some(message)))
    }

    /// Checks as much of a frame as has arrived.
    ///
    /// Only the kinds in `long` may be longer than [`Limits::SMALL_FRAME`]. The first byte of the
    /// body is the number of the kind, so a frame that is too long is refused after five bytes. A
    /// first frame that is too long does not come from blobferry.
    fn check(&self, frame: &[u8], max: u32, long: &[u8]) -> Result<(), PeerError> {
        let Some(length) = frame.first_chunk::<LENGTH_BYTES>() else { return Ok(()) };
        let len = u32::from_le_bytes(*length);
        match frame.get(LENGTH_BYTES) {
            _ if len > max && !self.greeted => Err(PeerError::NotBlobferry { said: *length }),
            _ if len > max => Err(PeerError::FrameTooLong { len, max }),
            Some(kind) if len > Limits::SMALL_FRAME && !long.contains(kind) => {
                Err(PeerError::FrameTooLong { len, max: Limits::SMALL_FRAME })
            }
            _ => Ok(()),
        }
    }
}

/// Returns where a frame ends, counted from its first length byte, if all length bytes are there.
fn frame_end(frame: &[u8]) -> Option<usize> {
    let length = frame.first_chunk::<LENGTH_BYTES>()?;
    Some((u32::from_le_bytes(*length) as usize).saturating_add(LENGTH_BYTES))
}

fn decode(frame: &[u8]) -> Result<Message, DecodeError> {
    wire::decode(frame.get(LENGTH_BYTES..).unwrap_or_default())
}
