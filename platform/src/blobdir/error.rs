//! Why a directory or a file of blobs cannot be used.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use blobferry_protocol::Digest;

use crate::os::files;

/// Why a file of blob bytes could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk is full, or the quota used up.
    #[error("no room on the disk for {needed} more bytes at {path}, where {free} are free: {source}")]
    NoSpace {
        /// The file or directory that was to grow.
        path: PathBuf,
        /// The bytes asked for: all that the blob needs, or one write's where its size is not known.
        needed: u64,
        /// The bytes that are free on the disk, whoever may have them.
        free: u64,
        /// What the file system said.
        source: io::Error,
    },
    /// The limit of the cache leaves no room.
    #[error(
        "{needed} bytes are needed, but the cache may have {limit} in all, of which {in_use} are in use: wait until less \
         is in use, or raise the limit (blobferry cache gc --limit)"
    )]
    Full {
        /// The bytes asked for, with a little for what the file system needs itself.
        needed: u64,
        /// The most bytes that the files of the cache may have.
        limit: u64,
        /// The bytes that can not be removed now. 0 where the limit is too small for the blob in any case.
        in_use: u64,
    },
    /// More bytes came than were announced.
    #[error("{size} bytes were announced, and at least {found} came")]
    TooLong {
        /// The bytes announced.
        size: u64,
        /// The bytes that came until it was noticed.
        found: u64,
    },
    /// Fewer bytes came than were announced.
    #[error("{size} bytes were announced, and only {found} came")]
    TooShort {
        /// The bytes announced.
        size: u64,
        /// The bytes that came.
        found: u64,
    },
    /// The bytes are not the ones announced.
    #[error("the bytes are not the ones announced: their digest is {found}, not {expected}")]
    Digest {
        /// The digest announced.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The file system refused something.
    #[error("can not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

impl WriteError {
    /// Describes an error of the file system: what was tried, and with which path.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
        move |source| WriteError::Io { operation, path: path.to_owned(), source }
    }

    /// What became of taking up `needed` more bytes on the disk.
    pub fn space(operation: &'static str, path: &Path, needed: u64) -> impl FnOnce(io::Error) -> WriteError {
        move |source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
                let free = files::free(dir).unwrap_or_default();
                WriteError::NoSpace { path: path.to_owned(), needed, free, source }
            }
            _ => WriteError::io(operation, path)(source),
        }
    }
}

/// Why a directory can not be used for blobs.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It has blobs in another layout.
    #[error("{root} has the blob layout {found:?}, not \"zeocache\": choose another directory")]
    Other {
        /// The directory.
        root: PathBuf,
        /// The layout that it says it has.
        found: String,
    },
    /// It has something in it, and no `.layout`: it is used for something else.
    #[error("{root} is not empty, and not a directory of blobs: choose another directory, or empty this one")]
    NotBlobs {
        /// The directory.
        root: PathBuf,
    },
    /// It was to exist already, and does not, or has no `.layout`.
    #[error("{root} is not a directory of blobs: is the path right, and the server's file system mounted?")]
    Missing {
        /// The directory.
        root: PathBuf,
    },
    /// It is somebody else's, who could put anything into it.
    #[error(
        "{root} belongs to user {owner}, and not to you (user {user}): its owner could change what you read from it; \
         choose another directory"
    )]
    Foreign {
        /// The directory.
        root: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who wanted to use it.
        user: u32,
    },
    /// Others can write to it.
    #[error(
        "{root} can be written to by others (its mode is {mode:o}), who could change what you read from it: \
         chmod -R go-w {root}, or choose another directory"
    )]
    Writable {
        /// The directory.
        root: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Processes can not agree on who fills a file.
    #[error(
        "file locks do not work in {root}, which is on {file_system} ({reason}): processes that share it would damage \
         each other's files; choose a directory on a local disk"
    )]
    Locks {
        /// The directory.
        root: PathBuf,
        /// What it is on.
        file_system: &'static str,
        /// What is wrong with them.
        reason: String,
    },
    /// The file system refused something.
    #[error("can not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

impl LayoutError {
    /// Describes an error of the file system: what was tried, and with which path.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayoutError {
        move |source| LayoutError::Io { operation, path: path.to_owned(), source }
    }
}
