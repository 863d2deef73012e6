//! How errors of SQLite and of blob files look to a client, and to the opener of a store.

use std::io;
use std::path::Path;

use blobferry_platform::blobdir::WriteError;
use blobferry_protocol::RequestError;
use rusqlite::ErrorCode;

use crate::errors::{DatabaseError, OpenError, disk_error};

/// Makes an [`OpenError`] of an operating system's error.
pub(super) fn open_io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { operation, path: path.to_owned(), source }
}

/// Makes an [`OpenError`] of an error of SQLite.
pub(super) fn open_database_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(rusqlite::Error) -> OpenError {
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign { path: path.to_owned() },
        code => {
            let source = DatabaseError::new(source, code == Some(ErrorCode::DatabaseCorrupt));
            OpenError::Database { operation, path: path.to_owned(), source }
        }
    }
}

/// Returns what a client sees of a failed database operation.
pub(super) fn database_error(operation: &str, path: &Path, error: &rusqlite::Error) -> RequestError {
    let detail = format!("could not {operation} in {}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => RequestError::NoSpace { detail },
        Some(ErrorCode::ReadOnly) => RequestError::ReadOnly { reason: detail },
        // SQLite reports this too if the disk cannot read a page.
        Some(ErrorCode::DatabaseCorrupt) => RequestError::Failed {
            detail: format!(
                "{detail}; stop the server, and see what `blobferry check` says of its directory"
            ),
        },
        _ => RequestError::Failed { detail },
    }
}

/// Returns what a client sees of a blob that could not be written.
pub(super) fn blob_error(error: &WriteError) -> RequestError {
    match error {
        WriteError::NoSpace { .. } | WriteError::Full { .. } => {
            RequestError::NoSpace { detail: error.to_string() }
        }
        WriteError::TooLong { .. } | WriteError::TooShort { .. } | WriteError::Digest { .. } => {
            RequestError::Mismatch { detail: error.to_string() }
        }
        WriteError::Io { operation, path, source } => disk_error(operation, path, source),
        _ => RequestError::Failed { detail: error.to_string() },
    }
}
