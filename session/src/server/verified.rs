//! The files that this server has hashed lately, and need not hash again to send them.
//!
//! The server hashes a blob while it sends it as a whole, so that damage is found before the last byte is sent. The
//! receiver hashes it as well, and relies on nothing else. Hashing is half of the work of sending, and hashing the same
//! file again for each of a hundred clients finds nothing new. A blob that was hashed when it was stored counts as well.

use std::time::Duration;

use blobferry_platform::bounded_map::BoundedMap;
use blobferry_platform::os::{self, FileStamp};
use blobferry_platform::sync::Mutex;
use blobferry_protocol::{Digest, Oid};

/// How long a file counts as verified.
const VALID: Duration = Duration::from_secs(60 * 60);
/// Files that are remembered, at most: the latest.
const MAX_FILES: usize = 1024;

/// A file with the bytes of a blob, as it was when it was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VerifiedFile {
    pub(super) oid: Oid,
    pub(super) digest: Digest,
    pub(super) stamp: FileStamp,
}

/// The verified files of a server and when each was verified, since 1970. All connections share it.
#[derive(Debug)]
pub(super) struct RecentlyVerified(Mutex<BoundedMap<VerifiedFile, Duration>>);

impl Default for RecentlyVerified {
    fn default() -> RecentlyVerified {
        RecentlyVerified(Mutex::new(BoundedMap::new(MAX_FILES)))
    }
}

impl RecentlyVerified {
    /// Adds a file that was verified just now.
    pub(super) fn add(&self, file: VerifiedFile) {
        self.0.lock().insert(file, os::unix_time());
    }

    /// Returns whether a file was verified within the last hour.
    pub(super) fn contains(&self, file: VerifiedFile) -> bool {
        let verified_at = self.0.lock().get(&file).copied();
        // After the clock was set back the age is unknown.
        let age = verified_at.and_then(|at| os::unix_time().checked_sub(at));
        age.is_some_and(|age| age < VALID)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    fn verified(oid: u64, file: &File) -> VerifiedFile {
        VerifiedFile { oid: Oid(oid), digest: Digest([7; 32]), stamp: FileStamp::of(file).unwrap() }
    }

    #[test]
    fn changed_file_and_other_blob_are_not_verified() {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        let (files, before) = (RecentlyVerified::default(), verified(1, named.as_file()));
        assert!(!files.contains(before));
        files.add(before);
        assert!(files.contains(before) && !files.contains(verified(2, named.as_file())));
        named.write_all(b"damage").unwrap();
        assert!(!files.contains(verified(1, named.as_file())));
    }

    #[test]
    fn verification_expires_after_an_hour_or_a_clock_set_back() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let (files, file) = (RecentlyVerified::default(), verified(1, named.as_file()));
        for (age, is_valid) in [(VALID, false), (VALID - Duration::from_secs(60), true)] {
            files.add(file);
            *files.0.lock().get_mut(&file).unwrap() -= age;
            assert_eq!(files.contains(file), is_valid);
        }
        files.add(file);
        *files.0.lock().get_mut(&file).unwrap() += VALID;
        assert!(!files.contains(file));
    }

    #[test]
    fn only_the_latest_files_are_remembered() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let files = RecentlyVerified::default();
        for oid in 0..=MAX_FILES as u64 {
            files.add(verified(oid, named.as_file()));
        }
        assert!(!files.contains(verified(0, named.as_file())));
        assert!(files.contains(verified(1, named.as_file())));
        assert!(files.contains(verified(MAX_FILES as u64, named.as_file())));
        assert_eq!(files.0.lock().len(), MAX_FILES);
    }
}
