//! A blob that is there: an open file, and where it is.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use blobferry_protocol::BlobId;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use blobferry_platform::blobdir::layout::Layout;

/// A blob in the cache: an open read-only file, all of it.
///
/// As long as it lives, or the file that [`CachedBlob::into_file`] makes of it, no process removes the file to make
/// room: its path can be given to other programs. In shared mode the server alone decides that, and the file may be
/// gone from its path at any time. What is open stays readable in any case.
#[derive(Debug)]
pub struct CachedBlob {
    blob: BlobId,
    layout: Layout,
    /// Made when somebody asks for it.
    path: OnceLock<PathBuf>,
    file: File,
    size: u64,
}

impl CachedBlob {
    pub(crate) fn new(blob: BlobId, layout: &Layout, file: File, metadata: &Metadata) -> CachedBlob {
        let layout = layout.clone();
        CachedBlob { blob, layout, path: OnceLock::new(), file, size: metadata.len() }
    }

    /// The blob that it is.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.get_or_init(|| self.layout.blob_path(self.blob))
    }

    /// The file, open for reading. Nobody else has this one open: its cursor is the caller's.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, open for reading. It is in use as long as this, or a clone of it, is open.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Notes in the file's access time that it is used, as ZEO does: what was used longest ago is removed first when room
/// is needed. The kernel's own notes are too coarse for that (`relatime`), or not taken (`noatime`). Once a second is
/// often enough; where it is not allowed, it is left.
pub(crate) fn touch(file: &File, metadata: &Metadata) {
    const OFTEN_ENOUGH: Duration = Duration::from_secs(1);
    let Ok(last) = metadata.accessed() else { return };
    // A time in the future would keep the file for ever.
    if SystemTime::now().duration_since(last).map_or(true, |age| age > OFTEN_ENOUGH) {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        _ = rustix::fs::futimens(file, &times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_use_of_a_file_is_noted_and_its_age_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let file = File::create(&path).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        file.set_times(std::fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago)).unwrap();
        touch(&file, &file.metadata().unwrap());
        let metadata = file.metadata().unwrap();
        assert!(metadata.accessed().unwrap() > long_ago + Duration::from_secs(1800));
        assert!(metadata.modified().unwrap() < long_ago + Duration::from_secs(1800));
    }
}
