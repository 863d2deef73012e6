//! Disk space for arriving blobs: an upload that does not fit is refused before its first byte.
//!
//! Most file systems reserve space for a whole file when it is created, and fail at once if there
//! is none. On others, the bytes that all uploads have still to write are counted here, and
//! compared with the free space.

use std::path::{Path, PathBuf};

use blobferry_platform::blobdir::WriteError;
use blobferry_platform::os::files;
use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_protocol::RequestError;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// The space on one file system.
#[derive(Debug)]
pub(super) struct DiskSpace {
    dir: PathBuf,
    /// The bytes that uploads have still to write; `None` if the file system reserves space itself.
    outstanding: Option<Arc<AtomicU64>>,
}

impl DiskSpace {
    /// Finds out whether the file system of a directory can reserve space.
    pub(super) fn of(dir: &Path) -> DiskSpace {
        let reserve = |file| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1);
        let reserved = tempfile::tempfile_in(dir).map(reserve);
        let cannot = matches!(reserved, Ok(Err(Errno::OPNOTSUPP | Errno::NOSYS)));
        DiskSpace { dir: dir.to_owned(), outstanding: cannot.then(Arc::default) }
    }

    /// Reserves space for an upload, if the file system does not do that itself.
    pub(super) fn reserve(&self, size: u64) -> Result<SpaceReservation, RequestError> {
        let Some(outstanding) = &self.outstanding else { return Ok(SpaceReservation::default()) };
        let others = outstanding.fetch_add(size, Ordering::Relaxed);
        let reserve = SpaceReservation { outstanding: Some(outstanding.clone()), left: size };
        match self.free() {
            Some(free) if size > free.saturating_sub(others) => {
                let dir = self.dir.display();
                let detail = format!(
                    "no room on the disk for {size} more bytes at {dir}: {free} bytes are free, and {others} of them are \
                     for other uploads"
                );
                Err(RequestError::NoSpace { detail })
            }
            _ => Ok(reserve),
        }
    }

    /// Returns the error for a blob for which the file system could not reserve space.
    pub(super) fn not_reserved(&self, error: &WriteError) -> RequestError {
        let free = self.free().map_or_else(String::new, |free| format!("; {free} bytes are free"));
        RequestError::NoSpace { detail: format!("{error}{free}") }
    }

    /// Returns the free bytes, if the file system reports them.
    fn free(&self) -> Option<u64> {
        files::free(&self.dir)
    }
}

/// The space of one upload that is not written yet. Dropping it releases the space.
#[derive(Debug, Default)]
pub(super) struct SpaceReservation {
    outstanding: Option<Arc<AtomicU64>>,
    left: u64,
}

impl SpaceReservation {
    /// Notes that `written` more bytes are written, and so not free any more.
    pub(super) fn consume(&mut self, written: u64) {
        let written = written.min(self.left);
        self.left -= written;
        if let Some(outstanding) = &self.outstanding {
            outstanding.fetch_sub(written, Ordering::Relaxed);
        }
    }
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.consume(self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreserved_uploads_must_fit_beside_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let outstanding = Arc::new(AtomicU64::new(0));
        let space = DiskSpace { dir: dir.path().to_owned(), outstanding: Some(outstanding.clone()) };
        let half = space.free().unwrap() / 2;
        let mut first = space.reserve(half).unwrap();
        let refused = space.reserve(half * 3 / 2).unwrap_err().to_string();
        assert!(refused.contains(&format!("for {} more bytes", half * 3 / 2)), "{refused}");
        assert!(refused.contains(&format!("and {half} of them are for other uploads")), "{refused}");
        assert_eq!(outstanding.load(Ordering::Relaxed), half, "what was refused is not outstanding");
        first.consume(half - 10);
        assert_eq!(outstanding.load(Ordering::Relaxed), 10);
        let second = space.reserve(half).unwrap();
        drop((first, second));
        assert_eq!(outstanding.load(Ordering::Relaxed), 0);
    }
}
