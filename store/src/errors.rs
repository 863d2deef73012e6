//! Errors: why a store cannot be opened, and how failures of the disk look to a client.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use blobferry_platform::blobdir::LayoutError;
use blobferry_protocol::RequestError;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another server, or a check, has the directory open.
    #[error("{dir} is in use by another server or a check; stop that one first, or name another directory")]
    InUse {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The directory of blobs cannot be used.
    #[error("the directory of blobs cannot be used")]
    Layout(#[from] LayoutError),
    /// There is no database, but there are blobs.
    #[error(
        "{path} is missing or empty, and nothing else knows what the blobs beside it are: restore it from a backup"
    )]
    NoDatabase {
        /// The database file.
        path: PathBuf,
    },
    /// The file is not a blobferry database.
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
    /// The database was written by an earlier version of this program, and must not be changed.
    #[error(
        "{path} has format {found}, and only format {needed} can be looked at: let a server serve it once, or check it with \
         repair, which brings it to that format"
    )]
    Older {
        /// The database file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The format that it must have.
        needed: i64,
    },
    /// The database failed.
    #[error("could not {operation} in {path}")]
    Database {
        /// What was attempted.
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// The error of the database library.
        source: DatabaseError,
    },
    /// The file system failed.
    #[error("could not {operation} {path}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The store's threads could not be started.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
}

impl OpenError {
    /// Returns whether committed data is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            OpenError::NoDatabase { .. } => true,
            OpenError::Database { source, .. } => source.is_corruption(),
            _ => false,
        }
    }
}

/// An error of the database library.
///
/// The library's own type is not part of this crate's API, so that its version may change.
#[derive(Debug)]
pub struct DatabaseError {
    source: Box<dyn Error + Send + Sync>,
    is_corruption: bool,
}

impl DatabaseError {
    #[cfg(feature = "sqlite")]
    pub(crate) fn new(source: impl Error + Send + Sync + 'static, is_corruption: bool) -> DatabaseError {
        DatabaseError { source: Box::new(source), is_corruption }
    }

    /// Returns whether the database file is corrupt.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        self.is_corruption
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for DatabaseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// Returns what a client sees of a failed disk operation.
pub(crate) fn disk_error(operation: &str, path: &Path, error: &io::Error) -> RequestError {
    let detail = format!("could not {operation} {}: {error}", path.display());
    match error.kind() {
        // A limit on the length of files is a lack of space too, and is removed as easily.
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            RequestError::NoSpace { detail }
        }
        ErrorKind::ReadOnlyFilesystem => RequestError::ReadOnly { reason: detail },
        _ => RequestError::Failed { detail },
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_wrapped_system_error_keeps_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let wrapped = |errno: Errno| {
            let error = io::Error::from(errno);
            io::Error::new(error.kind(), format!("{error} at some path"))
        };
        let reported = |errno| disk_error("create a file in", dir.path(), &wrapped(errno));
        assert!(matches!(reported(Errno::ROFS), RequestError::ReadOnly { .. }));
        assert!(matches!(reported(Errno::DQUOT), RequestError::NoSpace { .. }));
    }

    #[test]
    fn a_disk_error_is_typed_and_names_operation_and_path() {
        let reported = |errno: Errno| disk_error("write to", "blobs/1/x".as_ref(), &errno.into());
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert!(matches!(reported(errno), RequestError::NoSpace { .. }), "{errno}");
        }
        assert!(matches!(reported(Errno::ROFS), RequestError::ReadOnly { .. }));
        assert!(matches!(reported(Errno::IO), RequestError::Failed { .. }));
        assert!(reported(Errno::IO).to_string().contains("could not write to blobs/1/x: Input/output error"));
    }

    #[test]
    fn a_cause_is_the_source_and_not_in_the_message() {
        let source = io::Error::other("the cause");
        let error = OpenError::Io { operation: "open", path: "a/file".into(), source };
        assert_eq!(error.to_string(), "could not open a/file");
        assert_eq!(error.source().unwrap().to_string(), "the cause");
    }
}
