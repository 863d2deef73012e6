//! Files whose stamps were read before: to read one costs as much as to lock and look at the file together.
//!
//! Whoever changes a stamp changes the file's time of change with it, and so makes it unknown. So does the note of its use,
//! once a second.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use blobferry_platform::sync::{Mutex, MutexGuard};

/// How many files are remembered; the next one takes the place of another.
const REMEMBERED: usize = 1024;

/// Files that were found to be trusted.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Vec<Option<Version>>>);

/// A file, as it was at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Known {
    /// Whether the file was trusted, and is still as it was then.
    pub(crate) fn contains(&self, file: &Metadata) -> bool {
        self.places().get(place(file)).is_some_and(|place| *place == Some(Version::of(file)))
    }

    /// The file is trusted as it is.
    pub(crate) fn insert(&self, file: &Metadata) {
        let mut places = self.places();
        if places.is_empty() {
            places.resize(REMEMBERED, None);
        }
        if let Some(place) = places.get_mut(place(file)) {
            *place = Some(Version::of(file));
        }
    }

    fn places(&self) -> MutexGuard<'_, Vec<Option<Version>>> {
        self.0.lock()
    }
}

impl Version {
    fn of(file: &Metadata) -> Version {
        Version { device: file.dev(), inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()) }
    }
}

fn place(file: &Metadata) -> usize {
    // Files that are made one after the other have numbers side by side.
    file.ino() as usize % REMEMBERED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn a_file_is_known_as_long_as_nothing_about_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("blob")).unwrap();
        let known = Known::default();
        let before = file.metadata().unwrap();
        assert!(!known.contains(&before));
        known.insert(&before);
        assert!(known.contains(&before) && known.contains(&file.metadata().unwrap()));
        // Until the clock that files are stamped with has moved on.
        while file.metadata().unwrap().ctime_nsec() == before.ctime_nsec() {
            fs::set_permissions(dir.path().join("blob"), before.permissions()).unwrap();
        }
        assert!(!known.contains(&file.metadata().unwrap()));
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::default();
        for n in 0..2 * REMEMBERED {
            let file = File::create(dir.path().join(n.to_string())).unwrap();
            known.insert(&file.metadata().unwrap());
        }
        assert_eq!(known.places().len(), REMEMBERED);
    }
}
