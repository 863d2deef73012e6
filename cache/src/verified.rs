//! Files whose stamps were found valid: reading a stamp costs as much as locking the file and
//! reading its metadata.
//!
//! A change of the stamp changes the file's ctime, after which the file counts as another one. So
//! does an update of its access time, which [`touch`](crate::cached_blob::touch) makes at most once
//! a second.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use blobferry_platform::bounded_map::BoundedMap;
use blobferry_platform::sync::Mutex;

/// The number of files that are remembered. The next file replaces the oldest one.
const CAPACITY: usize = 1024;

/// The files that were verified most recently.
#[derive(Debug)]
pub(crate) struct VerifiedFiles(Mutex<BoundedMap<(u64, u64), Ctime>>);

/// A file's time of change: seconds and nanoseconds.
type Ctime = (i64, i64);

impl Default for VerifiedFiles {
    fn default() -> VerifiedFiles {
        VerifiedFiles(Mutex::new(BoundedMap::new(CAPACITY)))
    }
}

/// A file as it is at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    changed: Ctime,
}

impl VerifiedFiles {
    /// Returns whether the file was verified, and has not changed since.
    pub(crate) fn contains(&self, file: &Metadata) -> bool {
        let file = FileIdentity::of(file);
        self.0.lock().get(&(file.device, file.inode)) == Some(&file.changed)
    }

    /// Remembers that the file is verified as it is now.
    pub(crate) fn insert(&self, file: &Metadata) {
        let file = FileIdentity::of(file);
        self.0.lock().insert((file.device, file.inode), file.changed);
    }
}

impl FileIdentity {
    fn of(file: &Metadata) -> FileIdentity {
        FileIdentity { device: file.dev(), inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn a_file_counts_as_verified_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("blob")).unwrap();
        let verified = VerifiedFiles::default();
        let before = file.metadata().unwrap();
        assert!(!verified.contains(&before));
        verified.insert(&before);
        assert!(verified.contains(&before) && verified.contains(&file.metadata().unwrap()));
        // Until the clock of the file system has moved on.
        while file.metadata().unwrap().ctime_nsec() == before.ctime_nsec() {
            fs::set_permissions(dir.path().join("blob"), before.permissions()).unwrap();
        }
        assert!(!verified.contains(&file.metadata().unwrap()));
    }

    #[test]
    fn at_most_capacity_files_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let verified = VerifiedFiles::default();
        for n in 0..2 * CAPACITY {
            let file = File::create(dir.path().join(n.to_string())).unwrap();
            verified.insert(&file.metadata().unwrap());
        }
        assert_eq!(verified.0.lock().len(), CAPACITY);
    }
}
