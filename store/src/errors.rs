//! Errors: why a store cannot be opened, and how failures of the disk look to a client.

use std::io;
use std::path::{Path, PathBuf};

use blobferry_cache::{LayoutError, WriteError};
use blobferry_protocol::RequestError;
use rustix::io::Errno;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has the directory open.
    #[error("{dir} is in use by another server; stop that one first, or serve another directory")]
    InUse {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The directory of blobs cannot be used.
    #[error("the directory of blobs cannot be used: {0}")]
    Layout(#[from] LayoutError),
    /// The database is not one of ours.
    #[error("{path} is not a blobferry store; serve another directory, or move that file away")]
    Foreign {
        /// The database file.
        path: PathBuf,
    },
    /// The database was written by a later version of this program.
    #[error(
        "{path} has format {found}, and this program knows formats up to {known} only; use a newer blobferry"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The last format that this program knows.
        known: i64,
    },
    /// The database failed.
    #[error("could not {operation} in {path}: {source}")]
    Database {
        /// What was attempted.
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file system failed.
    #[error("could not {operation} {path}: {source}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The store's threads could not be started.
    #[error("could not start a thread: {0}")]
    Thread(io::Error),
}

/// Makes an [`OpenError::Io`] of a system's error.
pub(crate) fn opening(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { operation, path: path.to_owned(), source }
}

/// What a client sees of a failed disk operation.
pub(crate) fn disk_error(operation: &str, path: &Path, error: &io::Error) -> RequestError {
    let detail = format!("could not {operation} {}: {error}", path.display());
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => RequestError::NoSpace { detail },
        _ => RequestError::Failed { detail },
    }
}

/// What a client sees of a failed database operation.
pub(crate) fn database_error(operation: &str, path: &Path, error: &rusqlite::Error) -> RequestError {
    let detail = format!("could not {operation} in {}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => RequestError::NoSpace { detail },
        _ => RequestError::Failed { detail },
    }
}

/// What a client sees of a blob that could not be written.
pub(crate) fn blob_error(error: &WriteError) -> RequestError {
    match error {
        WriteError::NoSpace { .. } | WriteError::Full { .. } => {
            RequestError::NoSpace { detail: error.to_string() }
        }
        WriteError::TooLong { .. } | WriteError::TooShort { .. } | WriteError::Digest { .. } => {
            RequestError::Mismatch { detail: error.to_string() }
        }
        WriteError::Io { operation, path, source } => disk_error(operation, path, source),
    }
}
