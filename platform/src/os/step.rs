//! The values that the operating system and a simulation exchange: jobs, file steps, and how a
//! served step ended.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

/// A closure to run on a thread that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// What a repeated step needs next. See [`register_step`](super::register_step).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call the step again at once: there may be more work.
    Now,
    /// Call the step again at this instant, or earlier.
    At(Instant),
    /// Call the step again when another thread has provided work.
    Waits,
    /// Never call the step again.
    Over,
}

/// A file operation that is about to be performed.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Appends bytes to a file.
    Write {
        /// The file.
        file: &'a File,
        /// The number of bytes.
        len: usize,
    },
    /// Overwrites bytes of a file, which keeps its length.
    Overwrite {
        /// The file.
        file: &'a File,
        /// The offset of the first byte.
        at: u64,
        /// The new bytes.
        bytes: &'a [u8],
    },
    /// Makes the bytes of a file durable.
    Sync(&'a File),
    /// Makes the names in a directory durable.
    SyncNames(&'a Path),
    /// Renames a file.
    Rename {
        /// The old name.
        from: &'a Path,
        /// The new name.
        to: &'a Path,
    },
    /// Removes a name.
    Remove(&'a Path),
}
