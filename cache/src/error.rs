//! Errors of a cache.

use std::io;
use std::path::{Path, PathBuf};

use blobferry_protocol::{BlobId, Oid};

use blobferry_platform::blobdir::LayoutError;
use blobferry_platform::blobdir::WriteError;

/// Why an operation of the cache failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The usage file cannot be used, or no space can be freed.
    #[error("the room of the cache: {0}")]
    Quota(WriteError),
    /// A blob's file could not be written, or the bytes are not the blob's.
    #[error("blob {blob} did not get into the cache: {source}")]
    Write {
        /// The blob.
        blob: BlobId,
        /// The cause.
        source: WriteError,
    },
    /// The file for an object could not be taken into a transaction.
    #[error("the file for object {oid} could not be taken: {source}")]
    Take {
        /// The object.
        oid: Oid,
        /// The cause.
        source: WriteError,
    },
    /// The path leads to something else than a regular file.
    #[error("{path} is not a regular file: it cannot be stored as a blob")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Another process wrote to the file while it was copied.
    #[error("{path} was changed while it was copied: store it again when no process writes to it")]
    Changed {
        /// The path of the file.
        path: PathBuf,
    },
    /// The cache is a server's own directory, and the blob has no file in it.
    #[error("blob {blob} is not in the server's directory: it was removed there, or is kept without a file")]
    NotShared {
        /// The blob.
        blob: BlobId,
    },
    /// [`Download::write`](crate::Download::write) or [`Download::finish`](crate::Download::finish)
    /// was called before [`Download::start`](crate::Download::start).
    #[error("the download of blob {blob} was not started: call Download::start first")]
    NotStarted {
        /// The blob.
        blob: BlobId,
    },
    /// The bytes in the partial file do not fit those to come, and were removed. The download can
    /// begin again.
    #[error("the partial file of blob {blob} does not fit the bytes to come: request all of them again")]
    Stale {
        /// The blob.
        blob: BlobId,
    },
    /// The download has ended, and the blob is in the cache.
    #[error("the download of blob {blob} is over, and the blob is in the cache")]
    Finished {
        /// The blob.
        blob: BlobId,
    },
    /// The thread that was to answer a claim has panicked.
    #[error("the claim of blob {blob} will not be answered: a thread that served the cache has panicked")]
    Abandoned {
        /// The blob.
        blob: BlobId,
    },
    /// Only blobs in the cache can be pinned.
    #[error("blob {blob} is not in the cache: fetch it, then pin it")]
    NotCached {
        /// The blob.
        blob: BlobId,
    },
    /// The file system has no extended attributes, which pins are kept in.
    #[error(
        "{path} cannot be pinned: its file system has no extended attributes; keep a copy of the file elsewhere"
    )]
    NoPins {
        /// The path of the blob's file.
        path: PathBuf,
    },
    /// In shared mode only the server may do this.
    #[error("{root} is the server's own directory: only the server can {operation}")]
    ServersOwn {
        /// The operation, as a verb and its object.
        operation: &'static str,
        /// The directory.
        root: PathBuf,
    },
    /// Another error of the system.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl CacheError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
        move |source| CacheError::Io { operation, path: path.to_owned(), source }
    }
}
