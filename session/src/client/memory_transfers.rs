//! Transfers of small blobs that go to memory.
//!
//! The thread that receives the bytes collects them; no other thread is needed. While the session is locked, bytes are
//! only appended. They are hashed and handed out after the lock is released. A blob that turns out not to be small is
//! moved to a file, like all others.

use std::collections::BTreeMap;

use blobferry_protocol::{Digest, RequestError, Slice, TransferEvent, TransferId};
use bytes::Bytes;

use crate::client::queue::MemoryDestination;
use crate::io::Sink;

/// The blobs that are being collected on one connection.
pub(super) struct MemoryTransfers {
    /// The largest blob that is collected, in bytes.
    largest: u64,
    blobs: BTreeMap<TransferId, (Box<dyn MemoryDestination>, Vec<u8>)>,
    /// The offsets below which bytes were taken since the last [`take_stored`](Self::take_stored).
    stored: Vec<(TransferId, u64)>,
}

/// What an event of a transfer leads to.
pub(super) enum Collected {
    /// The transfer goes on.
    Some,
    /// All bytes of a blob have arrived.
    All(Box<dyn MemoryDestination>, Bytes, Digest),
    /// The event is for the sinks. With a sink, the transfer was collected until now, and is not small.
    Elsewhere(TransferEvent, Option<Box<dyn Sink>>),
    /// The transfer has failed.
    Aborted(Box<dyn MemoryDestination>, RequestError),
}

impl MemoryTransfers {
    /// Collects blobs of at most `largest` bytes.
    pub(super) fn new(largest: u64) -> MemoryTransfers {
        MemoryTransfers { largest, blobs: BTreeMap::new(), stored: Vec::new() }
    }

    /// Registers a transfer that may begin.
    pub(super) fn expect(&mut self, transfer: TransferId, to: Box<dyn MemoryDestination>) {
        self.blobs.insert(transfer, (to, Vec::new()));
    }

    /// Removes a transfer that will not begin, or not go on.
    pub(super) fn remove(&mut self, transfer: TransferId) -> Option<Box<dyn MemoryDestination>> {
        self.blobs.remove(&transfer).map(|(to, _)| to)
    }

    /// Removes all transfers.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Box<dyn MemoryDestination>> + use<> {
        std::mem::take(&mut self.blobs).into_values().map(|(to, _)| to)
    }

    /// Takes an event of a transfer.
    pub(super) fn event(&mut self, event: TransferEvent) -> Collected {
        match event {
            TransferEvent::Started { transfer, size, .. } => match self.blobs.get_mut(&transfer) {
                Some((_, bytes)) if size <= self.largest => {
                    bytes.reserve_exact(size as usize);
                    Collected::Some
                }
                _ => Collected::Elsewhere(event, self.remove(transfer).map(|to| to.into_sink())),
            },
            TransferEvent::Stopped { transfer, digest } => match self.blobs.remove(&transfer) {
                Some((to, bytes)) => Collected::All(to, bytes.into(), digest),
                None => Collected::Elsewhere(event, None),
            },
            TransferEvent::Aborted { transfer, ref reason } => match self.remove(transfer) {
                Some(to) => Collected::Aborted(to, reason.clone()),
                None => Collected::Elsewhere(event, None),
            },
        }
    }

    /// Takes payload. Returns `false` if it is for the sinks.
    pub(super) fn payload(&mut self, slice: Slice, payload: &[u8]) -> bool {
        let Some((_, bytes)) = self.blobs.get_mut(&slice.transfer) else { return false };
        bytes.extend_from_slice(payload);
        let upto = slice.offset + slice.len;
        match self.stored.last_mut() {
            Some((transfer, stored)) if *transfer == slice.transfer => *stored = upto,
            _ => self.stored.push((slice.transfer, upto)),
        }
        true
    }

    /// Returns the offsets below which bytes were taken since the last call.
    pub(super) fn take_stored(&mut self) -> impl Iterator<Item = (TransferId, u64)> + '_ {
        self.stored.drain(..)
    }
}
