//! Errors of a directory of blobs and of the files in it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use blobferry_protocol::Digest;

use crate::os::files;

/// Why a file of blob bytes could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The disk is full, or the disk quota used up.
    #[error("no room on the disk for {needed} more bytes at {path}, where {free} are free: {source}")]
    NoSpace {
        /// The file or directory that was to grow.
        path: PathBuf,
        /// The number of bytes requested: all of the blob, or of one write if the blob's size is
        /// unknown.
        needed: u64,
        /// The number of free bytes on the disk.
        free: u64,
        /// The file system's error.
        source: io::Error,
    },
    /// The limit of the cache leaves no space.
    #[error(
        "{needed} bytes are needed, but the cache may have {limit} in all, of which {in_use} are in use: wait until less \
         is in use, or raise the limit (blobferry cache gc --limit)"
    )]
    Full {
        /// The number of bytes requested, including what the file system may need itself.
        needed: u64,
        /// The limit in bytes for all files of the cache.
        limit: u64,
        /// The number of bytes that cannot be evicted now. 0 if the blob does not fit the limit in
        /// any case.
        in_use: u64,
    },
    /// More bytes came than were announced.
    #[error("{size} bytes were announced, and at least {found} came")]
    TooLong {
        /// The number of bytes announced.
        size: u64,
        /// The number of bytes that came until the error.
        found: u64,
    },
    /// Fewer bytes came than were announced.
    #[error("{size} bytes were announced, and only {found} came")]
    TooShort {
        /// The number of bytes announced.
        size: u64,
        /// The number of bytes that came.
        found: u64,
    },
    /// The bytes have another digest than the announced one.
    #[error("the bytes are not the ones announced: their digest is {found}, not {expected}")]
    Digest {
        /// The digest announced.
        expected: Digest,
        /// The digest of the bytes that came.
        found: Digest,
    },
    /// Another error of the file system.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The file system's error.
        source: io::Error,
    },
}

impl WriteError {
    /// Describes an error of the file system: the operation and the path.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
        move |source| WriteError::Io { operation, path: path.to_owned(), source }
    }

    /// Describes an error of an operation that needs `needed` more bytes on the disk.
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

/// Why a directory cannot be used for blobs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// It has blobs in another layout.
    #[error("{root} has the blob layout {found:?}, not \"zeocache\": choose another directory")]
    Other {
        /// The directory.
        root: PathBuf,
        /// The layout that its `.layout` names.
        found: String,
    },
    /// It is not empty and has no `.layout`: it is used for something else.
    #[error("{root} is not empty, and not a directory of blobs: choose another directory, or empty this one")]
    NotBlobs {
        /// The directory.
        root: PathBuf,
    },
    /// It does not exist, or has no `.layout`.
    #[error("{root} is not a directory of blobs: is the path right, and the server's file system mounted?")]
    Missing {
        /// The directory.
        root: PathBuf,
    },
    /// It belongs to another user, who could change its files.
    #[error(
        "{root} belongs to user {owner}, and not to you (user {user}): its owner could change what you read from it; \
         choose another directory"
    )]
    Foreign {
        /// The directory.
        root: PathBuf,
        /// The owner's user id.
        owner: u32,
        /// This process's user id.
        user: u32,
    },
    /// Other users can write to it.
    #[error(
        "{root} can be written to by others (its mode is {mode:o}), who could change what you read from it: \
         chmod -R go-w {root}, or choose another directory"
    )]
    Writable {
        /// The directory.
        root: PathBuf,
        /// The mode of the directory.
        mode: u32,
    },
    /// File locks do not work in it, so processes could write the same file.
    #[error(
        "file locks do not work in {root}, which is on {file_system} ({reason}): processes that share it would damage \
         each other's files; choose a directory on a local disk"
    )]
    Locks {
        /// The directory.
        root: PathBuf,
        /// The file system's name.
        file_system: &'static str,
        /// What is wrong with the locks.
        reason: String,
    },
    /// Another error of the file system.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The file system's error.
        source: io::Error,
    },
}

impl LayoutError {
    /// Describes an error of the file system: the operation and the path.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayoutError {
        move |source| LayoutError::Io { operation, path: path.to_owned(), source }
    }
}
