//! The blobs that one background thread must verify, or extract from a segment, before their claims
//! are answered.

use std::collections::{BTreeSet, VecDeque};

use blobferry_protocol::BlobId;

/// The queue. `W` is the claim that leads the blob.
pub(crate) struct VerifyQueue<W> {
    queue: VecDeque<(BlobId, W)>,
    /// Whether a thread works on the queue.
    running: bool,
    /// Blobs whose files are verified, but could not be stamped.
    verified: BTreeSet<BlobId>,
}

impl<W> Default for VerifyQueue<W> {
    fn default() -> VerifyQueue<W> {
        VerifyQueue { queue: VecDeque::new(), running: false, verified: BTreeSet::new() }
    }
}

impl<W> VerifyQueue<W> {
    /// Returns whether a blob's file was verified although its stamp does not say so.
    pub(crate) fn is_verified(&self, blob: BlobId) -> bool {
        self.verified.contains(&blob)
    }

    /// Remembers that a blob's file was verified.
    pub(crate) fn set_verified(&mut self, blob: BlobId) {
        self.verified.insert(blob);
    }

    /// Queues a blob. Returns `true` if no thread works on the queue: the caller must start one.
    #[must_use]
    pub(crate) fn push(&mut self, blob: BlobId, leader: W) -> bool {
        self.queue.push_back((blob, leader));
        !std::mem::replace(&mut self.running, true)
    }

    /// Returns the next blob. `None` means that the calling thread must end.
    pub(crate) fn next(&mut self) -> Option<(BlobId, W)> {
        let next = self.queue.pop_front();
        self.running = next.is_some();
        next
    }
}
