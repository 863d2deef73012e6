//! What can go wrong with a cache.

use std::io;
use std::path::{Path, PathBuf};

use blobferry_protocol::{BlobId, Oid};

use blobferry_platform::blobdir::LayoutError;
use blobferry_platform::blobdir::WriteError;

/// Why a cache could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory can not be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// There is no account of the cache's room, or no room to be made.
    #[error("the room of the cache: {0}")]
    Quota(WriteError),
    /// A blob's file could not be written, or its bytes are not the blob's.
    #[error("blob {blob} did not get into the cache: {source}")]
    Write {
        /// The blob.
        blob: BlobId,
        /// What went wrong.
        source: WriteError,
    },
    /// The file for an object could not be taken into a transaction.
    #[error("the file for object {oid} could not be taken: {source}")]
    Take {
        /// The object.
        oid: Oid,
        /// What went wrong.
        source: WriteError,
    },
    /// Only regular files have bytes to store.
    #[error("{path} is not a regular file: it can not be stored as a blob")]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// Somebody wrote to a file while it was copied.
    #[error("{path} was changed while it was copied: store it again when nobody writes to it")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The cache is a server's own directory, and the file is not there: so it is nowhere.
    #[error("blob {blob} is not in the server's directory: it was removed there, or is kept without a file")]
    NotShared {
        /// The blob.
        blob: BlobId,
    },
    /// [`Download::write`](crate::Download::write) or `finish` was called before `start`.
    #[error("blob {blob}: its size must be known before its bytes (call Download::start first)")]
    NotStarted {
        /// The blob.
        blob: BlobId,
    },
    /// What is there of a blob's bytes is not its beginning, and was removed. The download goes on, and begins again
    /// from nothing.
    #[error("what is there of blob {blob} does not fit what is to come: ask for all of it again")]
    Stale {
        /// The blob.
        blob: BlobId,
    },
    /// The download has ended well: there is nothing to be written any more.
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
    /// Only what is in the cache can be pinned.
    #[error("blob {blob} is not in the cache: fetch it, then pin it")]
    NotCached {
        /// The blob.
        blob: BlobId,
    },
    /// Pins are kept in extended attributes.
    #[error(
        "{path} can not be pinned: its file system has no extended attributes; keep a copy of the file elsewhere"
    )]
    NoPins {
        /// The blob's file.
        path: PathBuf,
    },
    /// In shared mode the directory is the server's, which alone may do that.
    #[error("{root} is the server's own directory: only the server can {operation}")]
    ServersOwn {
        /// What was tried.
        operation: &'static str,
        /// The directory.
        root: PathBuf,
    },
    /// The system refused something.
    #[error("can not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CacheError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
        move |source| CacheError::Io { operation, path: path.to_owned(), source }
    }
}
