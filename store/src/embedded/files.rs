//! Blob files between staging and commit: they get their final names, and lose them again if nothing comes of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use blobferry_cache::Layout;
use blobferry_protocol::{BlobId, RequestError};

use crate::errors::disk_error;
use crate::staged::StagedFile;

/// The files that a batch has given their final names. Dropped without [`keep`](Files::keep), they are removed.
pub(super) struct Files<'a> {
    layout: &'a Layout,
    named: Vec<BlobId>,
    buckets: BTreeSet<u64>,
    new_bucket: bool,
}

impl<'a> Files<'a> {
    pub(super) fn new(layout: &'a Layout) -> Files<'a> {
        Files { layout, named: Vec::new(), buckets: BTreeSet::new(), new_bucket: false }
    }

    /// Gives a staged file its final name.
    pub(super) fn name(&mut self, file: StagedFile, blob: BlobId) -> Result<(), RequestError> {
        let bucket = blob.bucket();
        if !self.buckets.contains(&bucket) {
            let created = self.layout.create_bucket(bucket);
            let failed = |error| disk_error("create", &self.layout.bucket_path(bucket), &error);
            self.new_bucket |= created.map_err(failed)?;
            self.buckets.insert(bucket);
        }
        let path = self.layout.blob_path(blob);
        file.persist(&path).map_err(|error| disk_error("rename a staged blob to", &path, &error))?;
        self.named.push(blob);
        Ok(())
    }

    /// Makes the names durable.
    pub(super) fn sync(&self) -> Result<(), String> {
        let buckets = self.buckets.iter().map(|bucket| self.layout.bucket_path(*bucket));
        let root = self.new_bucket.then(|| self.layout.root().to_owned());
        for path in buckets.chain(root) {
            sync_dir(&path).map_err(|error| format!("could not sync {}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// How many have their final names.
    pub(super) fn count(&self) -> usize {
        self.named.len()
    }

    /// Removes all but the first `n`.
    pub(super) fn remove_from(&mut self, n: usize) {
        for blob in self.named.drain(n..) {
            // Whatever stays behind has no row, and is removed when the store is opened the next time.
            let _ = fs::remove_file(self.layout.blob_path(blob));
        }
    }

    pub(super) fn keep(mut self) {
        self.named.clear();
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        self.remove_from(0);
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
