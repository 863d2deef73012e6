//! What goes to the peer: control messages first, then one chunk of each blob in turn.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::connection::progress::Progress;
use crate::connection::transfer::{Slice, Transmit};
use crate::error::{PeerError, UsageError};
use crate::ids::{Digest, TransferId};
use crate::limits::Limits;
use crate::message::Message;
use crate::wire;
use crate::wire::EncodeError;

#[derive(Debug)]
struct Transfer {
    /// Offset of the next byte to send.
    next: u64,
    end: u64,
    /// Offset below which the peer accepts bytes.
    credit: u64,
    digest: Option<Digest>,
}

#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Frames that wait to be sent.
    control: Vec<u8>,
    transfers: BTreeMap<TransferId, Transfer>,
    /// Transfers with bytes left, in the order of their turns.
    turns: VecDeque<TransferId>,
    /// The same transfers, which have to make progress.
    pub(crate) progress: Progress,
    /// The latest transfer that began.
    last: Option<TransferId>,
    /// The transfer of the chunk that the last poll returned. The end of a transfer is queued by
    /// the next poll, because its source may fail until then.
    polled: Option<TransferId>,
    /// Payload bytes since the connection began: sent and allowed.
    sent: u64,
    credit: u64,
    transfer_window: u64,
}

impl Outgoing {
    pub(crate) fn connect(&mut self, peer: Limits) {
        self.credit = peer.connection_window;
        self.transfer_window = peer.transfer_window;
    }

    pub(crate) fn backlog(&self) -> usize {
        self.control.len()
    }

    /// Returns the number of transfers that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.transfers.len()
    }

    /// Appends a frame, and returns the number of bytes that wait then.
    pub(crate) fn queue(&mut self, message: &Message, max: u32) -> Result<usize, EncodeError> {
        wire::encode(message, max, &mut self.control)?;
        Ok(self.control.len())
    }

    /// Removes what was queued when `len` bytes waited already.
    pub(crate) fn unqueue(&mut self, len: usize) {
        self.control.truncate(len);
    }

    /// Starts a transfer whose `BlobStart` is queued.
    pub(crate) fn start(&mut self, id: TransferId, from: u64, end: u64, digest: Option<Digest>) {
        let credit = from.saturating_add(self.transfer_window);
        self.transfers.insert(id, Transfer { next: from, end, credit, digest });
        self.last = self.last.max(Some(id));
        if from < end {
            self.turns.push_back(id);
            self.progress.watch(id);
        } else {
            self.stop_if_done(id);
        }
    }

    pub(crate) fn contains(&self, id: TransferId) -> bool {
        self.transfers.contains_key(&id)
    }

    /// Removes a transfer; returns true if it was under way.
    pub(crate) fn remove(&mut self, id: TransferId) -> bool {
        self.turns.retain(|turn| *turn != id);
        self.progress.forget(id);
        self.transfers.remove(&id).is_some()
    }

    pub(crate) fn finish(&mut self, id: TransferId, digest: Digest) -> Result<(), UsageError> {
        let transfer = self.transfers.get_mut(&id).ok_or(UsageError::NoSuchTransfer(id))?;
        if transfer.next < transfer.end {
            return Err(UsageError::BadRange(id));
        }
        transfer.digest = Some(digest);
        self.stop_if_done(id);
        Ok(())
    }

    /// Queues the `BlobStop` of a transfer, if all its bytes are sent and its digest is known.
    fn stop_if_done(&mut self, id: TransferId) {
        let Some(&Transfer { next, end, digest: Some(digest), .. }) = self.transfers.get(&id) else { return };
        if next == end {
            self.transfers.remove(&id);
            let fits = self.queue(&Message::BlobStop { transfer: id, digest }, Limits::SMALL_FRAME);
            debug_assert!(fits.is_ok());
        }
    }

    pub(crate) fn credit(&mut self, id: TransferId, upto: u64) -> Result<(), PeerError> {
        match self.transfers.get_mut(&id) {
            Some(transfer) if upto < transfer.credit => {
                Err(PeerError::BadCredit { upto, before: transfer.credit })
            }
            Some(transfer) => {
                if upto > transfer.credit {
                    transfer.credit = upto;
                    self.progress.made(id);
                }
                Ok(())
            }
            // The transfer has ended while the credit was under way.
            None if Some(id) <= self.last => Ok(()),
            None => Err(PeerError::BadTransfer { transfer: id, what: "credit for what was never sent" }),
        }
    }

    pub(crate) fn connection_credit(&mut self, upto: u64) -> Result<(), PeerError> {
        if upto < self.credit {
            return Err(PeerError::BadCredit { upto, before: self.credit });
        }
        self.credit = upto;
        Ok(())
    }

    pub(crate) fn poll(&mut self, max_chunk: u32, head: &mut Vec<u8>) -> Option<Transmit> {
        if let Some(polled) = self.polled.take() {
            self.stop_if_done(polled);
        }
        let before = head.len();
        if head.is_empty() && head.capacity() <= self.control.capacity() {
            core::mem::swap(head, &mut self.control);
        } else {
            head.append(&mut self.control);
        }
        // An idle connection does not keep the memory of a burst.
        if self.control.capacity() > Limits::SMALL_FRAME as usize {
            self.control = Vec::new();
        }
        let body = self.next_chunk(max_chunk);
        if let Some(Slice { transfer, offset, len }) = body {
            // A chunk is at most `max_chunk` long, which is a `u32`.
            let len = u32::try_from(len).unwrap_or(max_chunk);
            let fits = wire::encode(&Message::BlobChunk { transfer, offset, len }, Limits::SMALL_FRAME, head);
            debug_assert!(fits.is_ok());
            self.polled = Some(transfer);
        }
        let head = head.len() - before;
        (head > 0).then_some(Transmit { head, body })
    }

    /// Returns at most one chunk of the next transfer in turn that has bytes and credit.
    fn next_chunk(&mut self, max_chunk: u32) -> Option<Slice> {
        let room = (self.credit.saturating_sub(self.sent)).min(u64::from(max_chunk));
        if room == 0 {
            return None;
        }
        for _ in 0..self.turns.len() {
            let id = self.turns.pop_front()?;
            let Some(transfer) = self.transfers.get_mut(&id) else { continue };
            let offset = transfer.next;
            let len = room.min(transfer.end.min(transfer.credit).saturating_sub(offset));
            transfer.next += len;
            if transfer.next < transfer.end {
                self.turns.push_back(id);
            } else {
                self.progress.forget(id);
            }
            if len > 0 {
                self.sent += len;
                self.progress.made(id);
                return Some(Slice { transfer: id, offset, len });
            }
        }
        None
    }
}
