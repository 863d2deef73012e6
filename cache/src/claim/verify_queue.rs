//! What has to be done about a file before it is handed out. It is done when the blob is claimed, by whoever has the bucket's
//! lock, on a thread of its own: one for the cache, since the disk is what it waits for.
//!
//! Files that were in the cache before the machine was last started are proven before they are believed, which is to read
//! all of one. A file that is proven gets a new stamp; one that is not is removed, and downloaded again. And of a small blob
//! that is only in a pack a file is made.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;

use blobferry_protocol::{BlobId, Digest};

use crate::cache::{Cache, Found};
use crate::claim::download::Download;
use crate::claim::{Waiter, copy_of};
use crate::error::CacheError;
use blobferry_platform::blobdir::integrity;
use blobferry_platform::hash::digest_of;
use blobferry_platform::os;

/// Claims in charge of a blob whose file must be proven, or made, first.
#[derive(Default)]
pub(crate) struct VerifyQueue {
    queue: VecDeque<(BlobId, Waiter)>,
    /// Whether a thread works on the queue.
    running: bool,
    /// Files that were proven, and could not be stamped anew.
    proven: BTreeSet<BlobId>,
}

impl VerifyQueue {
    pub(crate) fn is_proven(&self, blob: BlobId) -> bool {
        self.proven.contains(&blob)
    }

    /// The next one; `None` ends the thread that asks.
    fn next(&mut self) -> Option<(BlobId, Waiter)> {
        let next = self.queue.pop_front();
        self.running = next.is_some();
        next
    }
}

/// What has come of preparing a file.
enum Prepared {
    /// There is something to be found, or not any more.
    LookAgain,
    /// There is no file, and none can be made.
    Nothing,
}

impl Cache {
    /// Proves, removes or makes the blob's file on another thread, and then answers the claim, which is in charge of it.
    pub(crate) fn prepare_later(&self, blob: BlobId, waiter: Waiter) {
        let mut checks = self.checks();
        checks.queue.push_back((blob, waiter));
        let running = std::mem::replace(&mut checks.running, true);
        drop(checks);
        if running {
            return;
        }
        let cache = self.clone();
        if let Err(error) = os::spawn("blobferry-check", move || cache.run_checks()) {
            while let Some((blob, waiter)) = self.next_check() {
                let path = self.layout().blob_path(blob);
                self.fail(blob, waiter, CacheError::io("start a thread to check", &path)(copy_of(&error)));
            }
        }
    }

    fn run_checks(&self) {
        while let Some((blob, waiter)) = self.next_check() {
            match self.prepare(blob) {
                Ok(Prepared::LookAgain) => self.in_charge(blob, waiter),
                Ok(Prepared::Nothing) => waiter.download(Download::new(self.clone(), blob)),
                Err(error) => self.fail(blob, waiter, error),
            }
        }
    }

    fn next_check(&self) -> Option<(BlobId, Waiter)> {
        self.checks().next()
    }

    fn prepare(&self, blob: BlobId) -> Result<Prepared, CacheError> {
        match self.look(blob)? {
            Found::Ready(_) => Ok(Prepared::LookAgain),
            Found::Unproven(file, digest) => {
                self.prove_or_remove(blob, &file, digest)?;
                Ok(Prepared::LookAgain)
            }
            Found::Missing if self.unpack(blob)? => Ok(Prepared::LookAgain),
            Found::Missing => Ok(Prepared::Nothing),
        }
    }

    fn prove_or_remove(&self, blob: BlobId, file: &File, expected: Option<Digest>) -> Result<(), CacheError> {
        let path = self.layout().blob_path(blob);
        let (found, _) = digest_of(file).map_err(CacheError::io("read", &path))?;
        match expected {
            Some(digest) if digest == found => self.proven(blob, file, digest),
            _ => {
                tracing::warn!(%blob, path = %path.display(), "removed a file that was damaged by a power cut");
                if let Some(room) = self.room() {
                    room.remove(&path).map_err(CacheError::Quota)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn proven(&self, blob: BlobId, file: &File, digest: Digest) {
        let stamped = self.boot().is_some_and(|boot| integrity::write(file, digest, boot).is_ok());
        if !stamped {
            self.checks().proven.insert(blob);
        }
    }
}
