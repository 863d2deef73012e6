//! Syncs a blob's bytes while more of them arrive, so that the sync at its end is short.
//!
//! Only the sync at the end makes the blob durable. It uses the descriptor that the bytes were
//! written through. Early syncs use another one, since the system reports a failed write-back once
//! to each.

use std::fs::File;
use std::io;

use blobferry_platform::os::files;
use blobferry_platform::pool::BlockingPool;
use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicBool, Ordering};

use crate::sqlite::poison::Poison;
use crate::sqlite::sync_counter::SyncCounter;

/// The thread that syncs all arriving blobs. A disk is not faster with two.
#[derive(Clone, Debug)]
pub(super) struct EarlySync {
    workers: BlockingPool,
    /// The bytes from one sync to the next; 0 for no early syncs.
    step: u64,
    syncs: SyncCounter,
    poison: Poison,
}

impl EarlySync {
    pub(super) fn new(step: u64, syncs: &SyncCounter, poison: &Poison) -> EarlySync {
        EarlySync { workers: BlockingPool::new(1), step, syncs: syncs.clone(), poison: poison.clone() }
    }

    /// Makes the early syncs of one blob of `size` bytes.
    pub(super) fn for_upload(&self, size: u64) -> UploadSync {
        let next = if self.step == 0 { u64::MAX } else { self.step };
        UploadSync { early_sync: self.clone(), size, next, file: None, busy: Arc::default() }
    }
}

/// The early syncs of one arriving blob.
#[derive(Debug)]
pub(super) struct UploadSync {
    early_sync: EarlySync,
    size: u64,
    /// The number of written bytes at which the next sync is due.
    next: u64,
    /// Opened for the first sync.
    file: Option<Arc<File>>,
    /// A sync is queued or running.
    busy: Arc<AtomicBool>,
}

impl UploadSync {
    /// Queues a sync if it is due after `written` bytes. `open` opens the file again. The last
    /// bytes are left to the sync at the end.
    pub(super) fn written(&mut self, written: u64, open: impl FnOnce() -> io::Result<File>) {
        if written < self.next || written == self.size || self.busy.load(Ordering::Acquire) {
            return;
        }
        let file = match self.file.take().map_or_else(|| open().map(Arc::new), Ok) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(%error, "a blob is synced only at its end");
                self.next = u64::MAX;
                return;
            }
        };
        self.file = Some(file.clone());
        self.next = written.saturating_add(self.early_sync.step);
        self.busy.store(true, Ordering::Release);
        let (busy, EarlySync { syncs, poison, .. }) = (self.busy.clone(), self.early_sync.clone());
        self.early_sync.workers.run(move || {
            if poison.check().is_ok() {
                syncs.add(1);
                if let Err(error) = files::sync(&file) {
                    poison.set(&format!("could not sync a blob that arrives: {error}"));
                }
            }
            busy.store(false, Ordering::Release);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn early_sync(step: u64) -> EarlySync {
        EarlySync::new(step, &SyncCounter::default(), &Poison::default())
    }

    /// Waits until all queued syncs are done.
    fn drain(early_sync: &EarlySync) {
        let (done, end) = mpsc::channel();
        early_sync.workers.run(move || done.send(()).unwrap());
        end.recv().unwrap();
    }

    #[test]
    fn each_step_is_synced_once_except_the_last() {
        let early_sync = early_sync(10);
        let mut upload = early_sync.for_upload(45);
        let mut opened = 0;
        for written in [5, 9, 10, 14, 20, 35, 36, 45] {
            upload.written(written, || {
                opened += 1;
                tempfile::tempfile()
            });
            drain(&early_sync);
        }
        assert_eq!(early_sync.syncs.get(), 3, "at 10, 20 and 35, and not at the end");
        assert_eq!(opened, 1);
        assert_eq!(early_sync.poison.check(), Ok(()));
    }

    #[test]
    fn at_most_one_early_sync_runs_per_blob() {
        let early_sync = early_sync(10);
        let (go, wait) = mpsc::channel::<()>();
        early_sync.workers.run(move || wait.recv().unwrap());
        let mut upload = early_sync.for_upload(1000);
        for written in (10..500).step_by(10) {
            upload.written(written, tempfile::tempfile);
        }
        go.send(()).unwrap();
        drain(&early_sync);
        assert_eq!(early_sync.syncs.get(), 1);
        upload.written(500, tempfile::tempfile);
        drain(&early_sync);
        assert_eq!(early_sync.syncs.get(), 2);
    }

    #[test]
    fn no_early_sync_if_disabled_or_the_file_cannot_reopen() {
        let none = early_sync(0);
        none.for_upload(1000).written(999, || unreachable!());
        let early_sync = early_sync(10);
        let mut upload = early_sync.for_upload(1000);
        upload.written(10, || Err(io::Error::other("too many open files")));
        upload.written(20, || unreachable!());
        drain(&early_sync);
        assert_eq!((none.syncs.get(), early_sync.syncs.get()), (0, 0));
    }

    #[test]
    fn a_failed_early_sync_ends_all_writing() {
        let early_sync = early_sync(10);
        let mut upload = early_sync.for_upload(1000);
        // A pipe cannot be synced.
        let pipe = || Ok(File::from(std::os::fd::OwnedFd::from(io::pipe()?.1)));
        upload.written(10, pipe);
        drain(&early_sync);
        assert!(early_sync.poison.check().is_err());
        upload.written(20, || unreachable!());
        drain(&early_sync);
        assert_eq!(early_sync.syncs.get(), 1, "a failed sync is not repeated");
    }
}
