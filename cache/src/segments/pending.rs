//! Small blobs that have arrived and are not written yet.
//!
//! Who has loaded one has it already; nobody waits for its writing but other processes, that wait for the lock of its
//! bucket. Meanwhile this process finds it here. What is here is bounded: when there is too much, new loads wait.

use std::collections::{BTreeMap, VecDeque};

use blobferry_protocol::BlobId;
use bytes::Bytes;

use crate::segments::record::Head;
use blobferry_platform::os::Job;
use blobferry_platform::sync::{Mutex, MutexGuard};

/// So much may wait before loads have to. Each blob keeps a bucket's lock, which is an open file.
const MOST_BYTES: u64 = 2 << 20;
const MOST_BLOBS: usize = 128;
/// So much is written at once.
const BATCH: u64 = 128 << 10;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Pending(Mutex<State>);

#[derive(Default)]
struct State {
    blobs: BTreeMap<BlobId, (Head, Bytes)>,
    queue: VecDeque<BlobId>,
    bytes: u64,
    /// Somebody is writing, and goes on until nothing is left.
    writing: bool,
    /// Loads that wait until there is room.
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
        self.bytes >= MOST_BYTES || self.blobs.len() >= MOST_BLOBS
    }
}

impl Pending {
    /// A blob that waits to be written.
    pub(crate) fn get(&self, blob: BlobId) -> Option<(Head, Bytes)> {
        self.state().blobs.get(&blob).cloned()
    }

    /// Adds a blob. `true` where nobody is writing: the caller sees to it that somebody does.
    #[must_use]
    pub(crate) fn add(&self, head: Head, bytes: Bytes) -> bool {
        let mut state = self.state();
        state.bytes += head.record_len();
        state.queue.push_back(head.blob);
        state.blobs.insert(head.blob, (head, bytes));
        !std::mem::replace(&mut state.writing, true)
    }

    /// The next blobs to be written; none, and whoever writes has ended.
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

    /// These are written, or will not be. Loads that can go on now do so on this thread.
    pub(crate) fn done(&self, batch: &[(Head, Bytes)]) -> Vec<Job> {
        let mut state = self.state();
        for (head, _) in batch {
            if state.blobs.remove(&head.blob).is_some() {
                state.bytes -= head.record_len();
            }
        }
        match state.is_full() {
            true => Vec::new(),
            // Whoever finds it full again waits again.
            false => std::mem::take(&mut state.loads).into(),
        }
    }

    /// Has a load go on as soon as there is room: at once, or when some of it is written.
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
    fn one_writes_in_batches_in_the_order_of_coming_until_nothing_is_left() {
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
        assert!(pending.add(head(8, 1), bytes), "the one who wrote has ended");
    }

    #[test]
    fn loads_wait_while_there_is_too_much_and_go_on_when_there_is_room() {
        for (size, most) in [(64 << 10, MOST_BYTES.div_ceil((64 << 10) + 72)), (0, MOST_BLOBS as u64)] {
            let pending = Pending::default();
            let (tell, told) = mpsc::channel();
            let load = |n: u64| {
                let tell = tell.clone();
                pending.run_when_writable(Box::new(move || tell.send(n).unwrap()));
            };
            for n in 0..most {
                load(n);
                assert_eq!(told.try_recv(), Ok(n), "there is room");
                let _ = pending.add(head(n, size), Bytes::new());
            }
            load(1000);
            load(1001);
            assert!(told.try_recv().is_err());
            let batch = pending.next();
            pending.done(&batch).into_iter().for_each(|load| load());
            assert_eq!(told.try_iter().collect::<Vec<_>>(), [1000, 1001]);
        }
    }
}
