//! Errors about names.

use std::fmt;

use blobferry_protocol::{Oid, Tid};
use thiserror::Error;

use crate::path::{NameAt, NamePath};
use crate::record::RecordError;

/// Why an operation on names failed. `E` is the error of the client or store:
/// [`Objects::Error`](crate::Objects).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CatalogError<E> {
    /// No file or directory has this name.
    #[error("there is no `{name}`")]
    NoSuchName {
        /// The requested name.
        name: NameAt,
    },
    /// A path continues below a file.
    #[error("`{path}` is a file, not a directory")]
    NotADirectory {
        /// The path of the file.
        path: NamePath,
    },
    /// A file was expected.
    #[error("`{path}` is a directory, not a file")]
    IsADirectory {
        /// The path of the directory.
        path: NamePath,
    },
    /// The requested transaction is newer than the last one.
    #[error("there is no transaction {at} yet: the last one is {last}")]
    NotYet {
        /// The requested transaction.
        at: Tid,
        /// The server's last transaction.
        last: Tid,
    },
    /// Other transactions have changed the same files. Nothing was committed.
    #[error("{}", conflicts(.0))]
    Conflict(Vec<NameConflict>),
    /// Other transactions have changed the same directories before every attempt. Nothing was
    /// committed.
    #[error("nothing was changed: others were faster {attempts} times in the same directories; try again")]
    Contention {
        /// The number of attempts.
        attempts: u32,
    },
    /// The record of an object is not one that its place requires.
    #[error("object {oid} (transaction {tid}) is damaged")]
    Damaged {
        /// The object.
        oid: Oid,
        /// The revision.
        tid: Tid,
        /// What is wrong with the record.
        source: RecordError,
    },
    /// A directory refers to an object that does not exist.
    #[error("object {oid} is missing: a directory refers to it, but the server does not have it")]
    Missing {
        /// The object.
        oid: Oid,
    },
    /// A directory refers to an object whose revision of that time was removed by a pack.
    #[error("the names as of {at} are not complete any more: the server was packed since")]
    PackedAway {
        /// The transaction that was read as of.
        at: Tid,
    },
    /// The server returned no oids for new objects.
    #[error("the server gave no oids for new objects")]
    NoOids,
    /// A request to the client or store failed.
    #[error(transparent)]
    Objects(#[from] E),
}

impl<E> CatalogError<E> {
    /// Converts the error of the client or store, and leaves every other error as it is.
    pub fn map_objects<F>(self, convert: impl FnOnce(E) -> F) -> CatalogError<F> {
        match self {
            CatalogError::NoSuchName { name } => CatalogError::NoSuchName { name },
            CatalogError::NotADirectory { path } => CatalogError::NotADirectory { path },
            CatalogError::IsADirectory { path } => CatalogError::IsADirectory { path },
            CatalogError::NotYet { at, last } => CatalogError::NotYet { at, last },
            CatalogError::Conflict(conflicts) => CatalogError::Conflict(conflicts),
            CatalogError::Contention { attempts } => CatalogError::Contention { attempts },
            CatalogError::Damaged { oid, tid, source } => CatalogError::Damaged { oid, tid, source },
            CatalogError::Missing { oid } => CatalogError::Missing { oid },
            CatalogError::PackedAway { at } => CatalogError::PackedAway { at },
            CatalogError::NoOids => CatalogError::NoOids,
            CatalogError::Objects(error) => CatalogError::Objects(convert(error)),
        }
    }
}

/// A name that two transactions have changed at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameConflict {
    /// The name.
    pub path: NamePath,
    /// The revision that this transaction was made from; [`Tid::ZERO`] if the name was new.
    pub base: Tid,
    /// The current revision; [`Tid::ZERO`] if the name was removed.
    pub committed: Tid,
}

impl fmt::Display for NameConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NameConflict { path, base, committed } = self;
        match (*base, *committed) {
            (_, Tid::ZERO) => {
                write!(f, "`{path}` was removed meanwhile (this was made from revision {base})")
            }
            (Tid::ZERO, _) => write!(f, "`{path}` was added meanwhile (revision {committed})"),
            _ => {
                write!(f, "`{path}` was changed meanwhile (revision {committed}; this was made from {base})")
            }
        }
    }
}

/// The number of conflicts that a message lists one by one.
const LISTED: usize = 10;

fn conflicts(all: &[NameConflict]) -> String {
    let mut parts: Vec<String> = all.iter().take(LISTED).map(ToString::to_string).collect();
    if all.len() > LISTED {
        parts.push(format!("and {} more", all.len() - LISTED));
    }
    format!("conflict, nothing was changed: {}", parts.join("; "))
}
