//! The size and the modification time of a file, which reveal a change.

use std::fs::{File, Metadata};
use std::time::SystemTime;

/// The size and the modification time of a file. Two equal stamps of one file mean that no process
/// wrote to it between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileStamp {
    size: u64,
    modified: Option<SystemTime>,
}

impl From<&Metadata> for FileStamp {
    fn from(metadata: &Metadata) -> FileStamp {
        FileStamp { size: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl FileStamp {
    /// Returns the stamp that the file has now.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn of(file: &File) -> std::io::Result<FileStamp> {
        Ok(FileStamp::from(&file.metadata()?))
    }

    /// Returns the file's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}
