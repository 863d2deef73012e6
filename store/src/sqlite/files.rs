//! Blob files from staging to commit: their staged names, and their final ones, which they lose if
//! the batch fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use blobferry_platform::blobdir::Layout;
use blobferry_platform::os;
use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{BlobId, RequestError};

use crate::errors::disk_error;
use crate::sqlite::sync_counter::SyncCounter;
use crate::staging::StagedFile;

/// Names staged files in one directory.
#[derive(Debug)]
pub(super) struct Staging {
    dir: Arc<Path>,
    next: AtomicU64,
}

impl Staging {
    pub(super) fn new(dir: &Path) -> Staging {
        Staging { dir: dir.into(), next: AtomicU64::new(0) }
    }

    /// Reserves a name that no file has, and that no client can name.
    pub(super) fn reserve(&self) -> StagedFile {
        StagedFile::numbered(self.dir.clone(), self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// The files that a batch has given their final names. Dropped without [`keep`](Files::keep), they
/// are removed.
pub(super) struct Files<'a> {
    layout: &'a Layout,
    /// Whether a bucket was created whose own name is not durable yet. This outlives a failed
    /// batch, since its buckets stay and the next batch uses them.
    new_bucket: &'a AtomicBool,
    named: Vec<BlobId>,
    buckets: BTreeSet<u64>,
}

impl<'a> Files<'a> {
    pub(super) fn new(layout: &'a Layout, new_bucket: &'a AtomicBool) -> Files<'a> {
        Files { layout, new_bucket, named: Vec::new(), buckets: BTreeSet::new() }
    }

    /// Gives a staged file its final name.
    pub(super) fn name(&mut self, file: StagedFile, blob: BlobId) -> Result<(), RequestError> {
        let bucket = blob.bucket();
        if !self.buckets.contains(&bucket) {
            let created = self.layout.create_bucket(bucket);
            let failed = |error| disk_error("create", &self.layout.bucket_path(bucket), &error);
            if created.map_err(failed)? {
                self.new_bucket.store(true, Ordering::Relaxed);
            }
            self.buckets.insert(bucket);
        }
        let path = self.layout.blob_path(blob);
        file.persist(&path).map_err(|error| disk_error("rename a staged blob to", &path, &error))?;
        self.named.push(blob);
        Ok(())
    }

    /// Syncs the directories, which makes the names durable.
    pub(super) fn sync(&self, syncs: &SyncCounter) -> Result<(), String> {
        let unsynced = if planted(Bug::SkipDirectorySync) { Vec::new() } else { self.unsynced() };
        for path in unsynced {
            syncs.add(1);
            os::files::sync_names(&path)
                .map_err(|error| format!("could not sync {}: {error}", path.display()))?;
        }
        if !self.buckets.is_empty() {
            self.new_bucket.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Returns the directories with names that are not durable yet.
    fn unsynced(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = self.buckets.iter().map(|bucket| self.layout.bucket_path(*bucket)).collect();
        if !paths.is_empty() && self.new_bucket.load(Ordering::Relaxed) {
            paths.push(self.layout.root().to_owned());
        }
        paths
    }

    /// Returns how many files have their final names.
    pub(super) fn count(&self) -> usize {
        self.named.len()
    }

    /// Removes all files but the first `n`.
    pub(super) fn remove_from(&mut self, n: usize) {
        for blob in self.named.drain(n..) {
            // If this fails, the next open removes the file, as it has no row.
            let _ = os::files::remove(&self.layout.blob_path(blob));
        }
    }

    /// Keeps all files: the commit has happened.
    pub(super) fn keep(mut self) {
        self.named.clear();
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        self.remove_from(0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use blobferry_protocol::{Oid, Tid};

    use super::*;

    #[test]
    fn a_failed_batch_bucket_is_synced_by_its_next_user() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (staging, new_bucket) = (Staging::new(layout.tmp()), AtomicBool::new(false));
        let (bucket, root) = (layout.bucket_path(5), layout.root().to_owned());
        let named = |oid| {
            let staged = staging.reserve();
            fs::write(staged.path(), "bytes").unwrap();
            let mut files = Files::new(&layout, &new_bucket);
            files.name(staged, BlobId { oid: Oid(oid), tid: Tid(1) }).unwrap();
            files
        };
        drop(named(5)); // as a full database would do
        assert!(bucket.exists());
        let files = named(5 + BlobId::BUCKETS);
        assert_eq!(files.unsynced(), [bucket.clone(), root]);
        let syncs = SyncCounter::default();
        files.sync(&syncs).unwrap();
        assert_eq!(syncs.get(), 2);
        files.keep();
        assert_eq!(named(5).unsynced(), [bucket], "the bucket's own name is durable now");
    }
}
