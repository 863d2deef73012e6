//! A blob that is there: an open file, and where it is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use blobferry_protocol::BlobId;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

/// A blob in the cache: an open read-only file, all of it.
///
/// Whoever removes the file takes nothing away from this one: it stays readable as long as it is open. The path is
/// for programs that want one; the file may be gone from there at any time.
#[derive(Debug)]
pub struct CachedBlob {
    blob: BlobId,
    path: PathBuf,
    file: File,
    size: u64,
}

impl CachedBlob {
    pub(crate) fn new(blob: BlobId, path: PathBuf, file: File) -> io::Result<CachedBlob> {
        let size = file.metadata()?.len();
        Ok(CachedBlob { blob, path, file, size })
    }

    /// The blob that it is.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, open for reading. Nobody else has this one open: its cursor is the caller's.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, open for reading.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Notes in the file's access time that it is in use, as ZEO does: what was used longest ago is removed first
    /// when room is needed. The kernel's own notes are too coarse for that (`relatime`), or not taken (`noatime`).
    /// Once a minute is often enough; where it is not allowed, it is left.
    pub(crate) fn touch(&self) {
        const OFTEN_ENOUGH: Duration = Duration::from_secs(60);
        let Ok(last) = self.file.metadata().and_then(|metadata| metadata.accessed()) else { return };
        if SystemTime::now().duration_since(last).is_ok_and(|age| age > OFTEN_ENOUGH) {
            let times = Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            };
            _ = rustix::fs::futimens(&self.file, &times);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::{Oid, Tid};

    #[test]
    fn the_use_of_a_file_is_noted_and_its_age_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let file = File::create(&path).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        file.set_times(std::fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago)).unwrap();
        let blob = BlobId { oid: Oid(1), tid: Tid(1) };
        CachedBlob::new(blob, path, file.try_clone().unwrap()).unwrap().touch();
        let metadata = file.metadata().unwrap();
        assert!(metadata.accessed().unwrap() > long_ago + Duration::from_secs(1800));
        assert!(metadata.modified().unwrap() < long_ago + Duration::from_secs(1800));
    }
}
