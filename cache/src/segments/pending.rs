//! Small blobs that have arrived and are not written yet.
//!
//! The claim that downloaded such a blob has its bytes already. Only other processes wait until it
//! is written, in the lock of its bucket; this process finds it here. The memory is bounded: if it
//! is full, new loads wait.

use std::collections::{BTreeMap, VecDeque};

use blobferry_protocol::BlobId;
use bytes::Bytes;

use crate::segments::record::Head;
use blobferry_platform::os::Job;
use blobferry_platform::sync::{Mutex, MutexGuard};

/// The memory is full with this number of bytes or blobs. Each blob keeps a bucket's lock, which is
/// an open file.
const MAX_BYTES: u64 = 2 << 20;
const MAX_BLOBS: usize = 128;
/// The number of bytes that are written at once.
const BATCH: u64 = 128 << 10;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Pending(Mutex<State>);

#[derive(Default)]
struct State {
    blobs: BTreeMap<BlobId, (Head, Bytes)>,
    queue: VecDeque<BlobId>,
    bytes: u64,
    /// A job is writing, and continues until nothing is left.
    writing: bool,
    /// The loads that wait until the memory has space.
    loads: VecDeque<Job>,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        write!(f, "{} blobs, {} loads", state.blobs.len(), state.loads.len())
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES || self.blobs.len() >= MAX_BLOBS
    }
}

impl Pending {
    /// Returns a blob that waits to be written.
    pub(crate) fn get(&self, blob: BlobId) -> Option<(Head, Bytes)> {
        self.state().blobs.get(&blob).cloned()
    }

    /// Adds a blob. Returns `true` if no job is writing: the caller must start one.
    #[must_use]
    pub(crate) fn add(&self, head: Head, bytes: Bytes) -> bool {
        let mut state = self.state();
        state.bytes += head.record_len();
        state.queue.push_back(head.blob);
        state.blobs.insert(head.blob, (head, bytes));
        !std::mem::replace(&mut state.writing, true)
    }

    /// Returns the next blobs to write. An empty list means that the writing job must end.
    pub(crate) fn next(&self) -> Vec<(Head, Bytes)> {
        let mut state = self.state();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH
            && let Some(next) = state.queue.pop_front()
        {
            if let Some((head, body)) = state.blobs.get(&next) {
                bytes += head.record_len();
                batch.push((*head, body.clone()));
            }
        }
        state.writing = !batch.is_empty();
        batch
    }

    /// Removes blobs that are written, or could not be. Returns the loads that can go on now, for
    /// this thread to run.
    pub(crate) fn done(&self, batch: &[(Head, Bytes)]) -> Vec<Job> {
        let mut state = self.state();
        for (head, _) in batch {
            if state.blobs.remove(&head.blob).is_some() {
                state.bytes -= head.record_len();
            }
        }
        match state.is_full() {
            true => Vec::new(),
            // A load that finds the memory full again waits again.
            false => std::mem::take(&mut state.loads).into(),
        }
    }

    /// Runs a load as soon as the memory has space: at once, or when blobs were written.
    pub(crate) fn run_when_writable(&self, load: Job) {
        let mut state = self.state();
        if state.is_full() {
            state.loads.push_back(load);
            return;
        }
        drop(state);
        load();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::{Digest, Oid, Tid};
    use std::sync::mpsc;

    fn head(n: u64, size: u64) -> Head {
        Head { blob: BlobId { oid: Oid(n), tid: Tid(1) }, size, digest: Digest([0; 32]) }
    }

    #[test]
    fn blobs_are_written_in_batches_in_their_order() {
        let pending = Pending::default();
        let bytes = Bytes::from(vec![0; 50_000]);
        for n in 0..7 {
            assert_eq!(pending.add(head(n, 50_000), bytes.clone()), n == 0);
        }
        let mut written = Vec::new();
        loop {
            let batch = pending.next();
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= 3);
            assert!(
                batch.iter().all(|(head, _)| pending.get(head.blob).is_some()),
                "they are found until the end"
            );
            assert!(pending.done(&batch).is_empty());
            assert!(batch.iter().all(|(head, _)| pending.get(head.blob).is_none()));
            written.extend(batch.iter().map(|(head, _)| head.blob.oid.0));
        }
        assert!(written.into_iter().eq(0..7));
        assert!(pending.add(head(8, 1), bytes), "the writing job has ended");
    }

    #[test]
    fn loads_wait_while_the_memory_is_full() {
        for (size, most) in [(64 << 10, MAX_BYTES.div_ceil((64 << 10) + 72)), (0, MAX_BLOBS as u64)] {
            let pending = Pending::default();
            let (report, reported) = mpsc::channel();
            let load = |n: u64| {
                let report = report.clone();
                pending.run_when_writable(Box::new(move || report.send(n).unwrap()));
            };
            for n in 0..most {
                load(n);
                assert_eq!(reported.try_recv(), Ok(n), "there is space");
                let _ = pending.add(head(n, size), Bytes::new());
            }
            load(1000);
            load(1001);
            assert!(reported.try_recv().is_err());
            let batch = pending.next();
            pending.done(&batch).into_iter().for_each(|load| load());
            assert_eq!(reported.try_iter().collect::<Vec<_>>(), [1000, 1001]);
        }
    }
}
