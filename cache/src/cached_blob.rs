//! A blob in the cache: its open file and its path.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use blobferry_platform::blobdir::Layout;
use blobferry_protocol::BlobId;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

/// A blob in the cache: a complete file, open for reading.
///
/// No process evicts the file while this value lives, or the file that [`CachedBlob::into_file`]
/// returns. So its path can be given to other programs. In shared mode the server decides about
/// eviction, and the file may vanish from its path at any time. The open file stays readable in any
/// case.
///
/// [`Read`] reads the file from its cursor, which is at the start at first.
#[derive(Debug)]
pub struct CachedBlob {
    blob: BlobId,
    layout: Layout,
    /// Made on first use.
    path: OnceLock<PathBuf>,
    file: File,
    size: u64,
}

impl CachedBlob {
    pub(crate) fn new(blob: BlobId, layout: &Layout, file: File, metadata: &Metadata) -> CachedBlob {
        let layout = layout.clone();
        CachedBlob { blob, layout, path: OnceLock::new(), file, size: metadata.len() }
    }

    /// Returns the blob's id.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.get_or_init(|| self.layout.blob_path(self.blob))
    }

    /// Returns the file, open for reading. Unless [`CachedBlob::try_clone`] was called, the cursor
    /// belongs to the caller alone.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the file, open for reading. The blob is in use as long as the file, or a clone of
    /// it, is open.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns another value for the same open file, as [`File::try_clone`] does: both share one
    /// cursor. The blob is in use as long as one of them lives.
    ///
    /// # Errors
    /// Returns the system's error if the process has no file descriptor left.
    pub fn try_clone(&self) -> io::Result<CachedBlob> {
        let (layout, path) = (self.layout.clone(), self.path.clone());
        Ok(CachedBlob { blob: self.blob, layout, path, file: self.file.try_clone()?, size: self.size })
    }
}

impl Read for CachedBlob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl Read for &CachedBlob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buf)
    }
}

impl AsRef<Path> for CachedBlob {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

impl AsFd for CachedBlob {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Sets the file's access time to now, as ZEO does: eviction takes the least recently used files
/// first.
///
/// The kernel's own updates are too rare for that (`relatime`), or disabled (`noatime`). One update
/// per second suffices. If it is not permitted, the access time stays.
pub(crate) fn touch(file: &File, metadata: &Metadata) {
    const INTERVAL: Duration = Duration::from_secs(1);
    let Ok(last) = metadata.accessed() else { return };
    // A time in the future would protect the file forever.
    if SystemTime::now().duration_since(last).map_or(true, |age| age > INTERVAL) {
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
    fn touch_changes_the_access_time_only() {
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
