//! Errors of the command: the one place that turns them into text and exit codes.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use blobferry_cache::{CacheError, WriteError};
use blobferry_catalog::NameAt;
use blobferry_protocol::RequestError;
use blobferry_store::OpenError;
use blobferry_transport_tokio::CallError;
use thiserror::Error;

use crate::causes::chain;
use crate::local::LocalError;
use crate::remote::{CatalogError, RemoteError};

/// Why a subcommand failed.
///
/// A message does not repeat its cause: [`Failure::report`] prints the chain of causes.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The command line is invalid.
    #[error("{0}")]
    Usage(String),
    /// An operation on names failed.
    #[error(transparent)]
    Catalog(CatalogError),
    /// A file of the user cannot be put.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The server's directory cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A check has found damage, and printed it.
    #[error("{} is damaged: {damage} of what it should have is not as it was committed", dir.display())]
    Check {
        /// The number of findings that are damage.
        damage: usize,
        /// The server's directory.
        dir: PathBuf,
    },
    /// The cache of this machine failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Some blobs of the cache were damaged.
    #[error("{count} blobs were damaged, and are removed: `blobferry get` will fetch them again")]
    DamagedCache {
        /// The number of damaged blobs.
        count: usize,
    },
    /// Standard output cannot be written. A closed pipe is not reported: see [`Failure::quiet`].
    #[error("standard output")]
    Output(#[source] io::Error),
    /// The demonstration did not show what it should.
    #[error("the demonstration failed: a blob was sent more than once, or the bytes do not agree")]
    Demo,
    /// A system call failed.
    #[error("{doing}")]
    System {
        /// The step that failed.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Failure {
        Failure::Catalog(CatalogError::Objects(error))
    }
}

impl<E: Into<RemoteError>> From<blobferry_catalog::CatalogError<E>> for Failure {
    fn from(error: blobferry_catalog::CatalogError<E>) -> Failure {
        Failure::Catalog(error.map_objects(E::into))
    }
}

/// Returns what the user can do about an error of names. It follows the error's own text.
fn advice(error: &CatalogError) -> String {
    match error {
        CatalogError::NoSuchName { name: NameAt { at: Some(_), .. } } => {
            " (it was not there yet, or it was packed away)".into()
        }
        CatalogError::NoSuchName { name } => format!(" (see `blobferry ls {}`)", name.path.parent()),
        CatalogError::IsADirectory { path } => format!(" (see `blobferry ls {path}`)"),
        CatalogError::Conflict(conflicts) => conflicts.first().map_or_else(String::new, |first| {
            format!("; look at `blobferry log {}`, then try again", first.path)
        }),
        CatalogError::Objects(RemoteError::Cache(_)) => "; name another with --cache".into(),
        _ => String::new(),
    }
}

/// The exit code of the command. The numbers are part of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It is done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line is invalid (clap exits with this code, too).
    Usage = 2,
    /// There is no such name, revision or blob.
    NoSuchName = 3,
    /// Another transaction has changed the same files.
    Conflict = 4,
    /// No server answers, or the connection to it was lost.
    NoServer = 5,
    /// Data is damaged, at the server or in transit.
    Damaged = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Failure {
    /// Returns the exit code of this failure.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Usage(_) => Exit::Usage,
            Failure::Catalog(error) => catalog(error),
            Failure::Check { .. } => Exit::Damaged,
            Failure::Store(error) if error.is_damage() => Exit::Damaged,
            Failure::Local(error) if error.is_usage() => Exit::Usage,
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Failure::Cache(CacheError::NotCached { .. }) => Exit::NoSuchName,
            Failure::DamagedCache { .. } => Exit::Damaged,
            Failure::Local(_)
            | Failure::Cache(_)
            | Failure::Store(_)
            | Failure::Output(_)
            | Failure::Demo
            | Failure::System { .. } => Exit::Failed,
        }
    }

    /// Returns the text for standard error: the error, its causes, and what the user can do.
    pub(crate) fn report(&self) -> String {
        let advice = match self {
            Failure::Catalog(error) => advice(error),
            _ => String::new(),
        };
        format!("{}{advice}", chain(self))
    }

    /// Returns whether nothing is printed: the reader of the output has closed its end (`blobferry
    /// ls | head`).
    pub(crate) fn quiet(&self) -> bool {
        matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn catalog(error: &CatalogError) -> Exit {
    match error {
        CatalogError::NoSuchName { .. } | CatalogError::NotYet { .. } | CatalogError::PackedAway { .. } => {
            Exit::NoSuchName
        }
        CatalogError::NotADirectory { .. } | CatalogError::IsADirectory { .. } => Exit::Failed,
        CatalogError::Conflict(_) | CatalogError::Contention { .. } => Exit::Conflict,
        CatalogError::Damaged { .. } | CatalogError::Missing { .. } => Exit::Damaged,
        CatalogError::Objects(error) => remote(error),
        _ => Exit::Failed,
    }
}

fn remote(error: &RemoteError) -> Exit {
    match error {
        RemoteError::NoAddress { .. } => Exit::Usage,
        RemoteError::NoServer { .. }
        | RemoteError::Handshake { .. }
        | RemoteError::NotCommitted
        | RemoteError::OutcomeUnknown { .. } => Exit::NoServer,
        RemoteError::Cache(_) | RemoteError::Source { .. } => Exit::Failed,
        RemoteError::Call(error) => call(error),
    }
}

fn call(error: &CallError) -> Exit {
    match error {
        CallError::Refused(error) => refused(error),
        CallError::Disconnected { .. }
        | CallError::Unanswered
        | CallError::NotCommitted { .. }
        | CallError::OutcomeUnknown { .. } => Exit::NoServer,
        CallError::Cache(CacheError::Write { source, .. }) if is_damage(source) => Exit::Damaged,
        _ => Exit::Failed,
    }
}

fn refused(error: &RequestError) -> Exit {
    match error {
        RequestError::NoSuchObject { .. }
        | RequestError::NoSuchRevision { .. }
        | RequestError::NoSuchBlob { .. } => Exit::NoSuchName,
        RequestError::Damaged { .. } | RequestError::Mismatch { .. } => Exit::Damaged,
        RequestError::Stopping => Exit::NoServer,
        _ => Exit::Failed,
    }
}

/// Returns whether the received bytes were not the blob's. Every other write error is the disk's.
fn is_damage(error: &WriteError) -> bool {
    matches!(error, WriteError::TooLong { .. } | WriteError::TooShort { .. } | WriteError::Digest { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_catalog::NameConflict;
    use blobferry_protocol::{BlobId, Oid, Tid};

    #[test]
    fn failures_have_the_documented_exit_codes() {
        let broken = |kind: io::ErrorKind| Failure::Output(kind.into());
        let refused = |error: RequestError| Failure::from(RemoteError::from(error));
        let blob = BlobId { oid: Oid(1), tid: Tid(2) };
        let called = |error: CallError| Failure::from(RemoteError::from(error));
        let lost = |reason: &str| called(CallError::Disconnected { reason: reason.into() });
        let write = |source| called(CacheError::Write { blob, source }.into());
        let full = || io::ErrorKind::StorageFull.into();
        let conflict = NameConflict { path: "a".parse().unwrap(), base: Tid(1), committed: Tid(2) };
        let cases = [
            (broken(io::ErrorKind::BrokenPipe), 0),
            (broken(io::ErrorKind::StorageFull), 1),
            (refused(RequestError::NoSpace { detail: String::new() }), 1),
            (CatalogError::IsADirectory { path: "a".parse().unwrap() }.into(), 1),
            (Failure::Usage(String::new()), 2),
            (CatalogError::NoSuchName { name: "a".parse().unwrap() }.into(), 3),
            (refused(RequestError::NoSuchBlob { blob }), 3),
            (CatalogError::Conflict(vec![conflict]).into(), 4),
            (CatalogError::Contention { attempts: 3 }.into(), 4),
            (RemoteError::NoServer { server: String::new(), reason: String::new() }.into(), 5),
            (CatalogError::Missing { oid: Oid(1) }.into(), 6),
            (CacheError::NotCached { blob }.into(), 3),
            (CacheError::NoPins { path: "f".into() }.into(), 1),
            (Failure::DamagedCache { count: 1 }, 6),
            (write(WriteError::Full { needed: 3, limit: 2, in_use: 1 }), 1),
            (RemoteError::NoAddress { server: String::new() }.into(), 2),
            (lost("closed"), 5),
            (RemoteError::NotCommitted.into(), 5),
            (refused(RequestError::Damaged { blob, detail: String::new() }), 6),
            (Failure::Check { damage: 1, dir: "d".into() }, 6),
            (OpenError::NoDatabase { path: "d".into() }.into(), 6),
            (write(WriteError::TooLong { size: 1, found: 2 }), 6),
            (write(WriteError::Io { operation: "write", path: "f".into(), source: full() }), 1),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.exit() as u8, code, "{failure}");
        }
    }

    #[test]
    fn only_a_closed_pipe_is_quiet() {
        assert!(Failure::Output(io::ErrorKind::BrokenPipe.into()).quiet());
        assert!(!Failure::Output(io::ErrorKind::StorageFull.into()).quiet());
    }

    #[test]
    fn reports_end_with_advice() {
        let name = CatalogError::NoSuchName { name: "d/a".parse().unwrap() };
        assert_eq!(Failure::from(name).report(), "there is no `d/a` (see `blobferry ls d`)");
        let path = || "a".parse().unwrap();
        let conflict = NameConflict { path: path(), base: Tid(1), committed: Tid::ZERO };
        let report = Failure::Catalog(CatalogError::Conflict(vec![conflict])).report();
        let expected = "conflict, nothing was changed: `a` was removed meanwhile (this was made from revision \
                        0000000000000001); look at `blobferry log a`, then try again";
        assert_eq!(report, expected);
        let full = Failure::Output(io::ErrorKind::StorageFull.into());
        assert_eq!(full.report(), "standard output: no storage space");
    }
}
