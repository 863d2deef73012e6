//! Errors: why a store cannot be opened, and how failures of the disk look to a client.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use blobferry_platform::blobdir::{LayoutError, WriteError};
use blobferry_protocol::RequestError;
use rusqlite::ErrorCode;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server, or a check, has the directory open.
    #[error("{dir} is in use by another server or a check; stop that one first, or name another directory")]
    InUse {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The directory of blobs cannot be used.
    #[error("the directory of blobs cannot be used: {0}")]
    Layout(#[from] LayoutError),
    /// There is no database, but there are blobs.
    #[error(
        "{path} is missing or empty, and nothing else knows what the blobs beside it are: restore it from a backup"
    )]
    NoDatabase {
        /// The database file.
        path: PathBuf,
    },
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
    /// The database was written by an earlier version of this program, and is not to be changed.
    #[error(
        "{path} has format {found}, and only format {needed} can be looked at: let a server serve it once, or check it with \
         repair, which brings it to that format"
    )]
    Older {
        /// The database file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The one that it will have.
        needed: i64,
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

impl OpenError {
    /// Is it damage to what was committed?
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            OpenError::NoDatabase { .. } => true,
            OpenError::Database { source, .. } => {
                source.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
            }
            _ => false,
        }
    }
}

/// Makes an [`OpenError::Io`] of a system's error.
pub(crate) fn opening(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { operation, path: path.to_owned(), source }
}

/// What a client sees of a failed disk operation.
pub(crate) fn disk_error(operation: &str, path: &Path, error: &io::Error) -> RequestError {
    let detail = format!("could not {operation} {}: {error}", path.display());
    match error.kind() {
        // A limit on the length of files is a lack of room, too, and as easily mended.
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            RequestError::NoSpace { detail }
        }
        ErrorKind::ReadOnlyFilesystem => RequestError::ReadOnly { reason: detail },
        _ => RequestError::Failed { detail },
    }
}

/// What a client sees of a failed database operation.
pub(crate) fn database_error(operation: &str, path: &Path, error: &rusqlite::Error) -> RequestError {
    let detail = format!("could not {operation} in {}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => RequestError::NoSpace { detail },
        Some(ErrorCode::ReadOnly) => RequestError::ReadOnly { reason: detail },
        // Also said of what the disk can not read.
        Some(ErrorCode::DatabaseCorrupt) => RequestError::Failed {
            detail: format!(
                "{detail}; stop the server, and see what `blobferry check` says of its directory"
            ),
        },
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

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn what_a_library_has_wrapped_is_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let wrapped = |errno: Errno| {
            let error = io::Error::from(errno);
            io::Error::new(error.kind(), format!("{error} at some path"))
        };
        let told = |errno| disk_error("create a file in", dir.path(), &wrapped(errno));
        assert!(matches!(told(Errno::ROFS), RequestError::ReadOnly { .. }));
        assert!(matches!(told(Errno::DQUOT), RequestError::NoSpace { .. }));
    }

    #[test]
    fn what_the_system_says_becomes_a_typed_error_with_operation_and_path() {
        let told = |errno: Errno| disk_error("write to", "blobs/1/x".as_ref(), &errno.into());
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert!(matches!(told(errno), RequestError::NoSpace { .. }), "{errno}");
        }
        assert!(matches!(told(Errno::ROFS), RequestError::ReadOnly { .. }));
        assert!(matches!(told(Errno::IO), RequestError::Failed { .. }));
        assert!(told(Errno::IO).to_string().contains("could not write to blobs/1/x: Input/output error"));
    }
}
