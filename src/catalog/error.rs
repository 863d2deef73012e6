//! What can go wrong with names.

use std::fmt;

use blobferry_protocol::{Oid, Tid};
use thiserror::Error;

use super::path::{NameAt, NamePath};
use super::record::RecordError;
use crate::remote::RemoteError;

/// Why the catalog could not do something.
#[derive(Debug, Error)]
pub(crate) enum CatalogError {
    /// Nothing is called that.
    #[error("there is no `{name}`{}", hint(name))]
    NoSuchName {
        /// What was asked for.
        name: NameAt,
    },
    /// A path goes through a file.
    #[error("`{path}` is a file, not a directory")]
    NotADirectory {
        /// The path of the file.
        path: NamePath,
    },
    /// A file was expected.
    #[error("`{path}` is a directory, not a file (see `blobferry ls {path}`)")]
    IsADirectory {
        /// The path of the directory.
        path: NamePath,
    },
    /// A revision was asked for that is still to come.
    #[error("there is no transaction {at} yet: the last one is {last}")]
    NotYet {
        /// What was asked for.
        at: Tid,
        /// The server's last transaction.
        last: Tid,
    },
    /// Others have changed the same files meanwhile.
    #[error("{}", conflicts(.0))]
    Conflict(Vec<NameConflict>),
    /// Others have changed the same directories again and again.
    #[error("nothing was changed: others were faster {attempts} times in the same directories; try again")]
    Contention {
        /// How often it was tried.
        attempts: u32,
    },
    /// An object can not be what it should be.
    #[error("object {oid} (transaction {tid}) is damaged: {source}")]
    Damaged {
        /// The object.
        oid: Oid,
        /// The revision.
        tid: Tid,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Something refers to an object that does not exist.
    #[error("object {oid} is missing: a directory refers to it, but the server does not have it")]
    Missing {
        /// The object.
        oid: Oid,
    },
    /// Something refers to an object whose revision of that time is gone.
    #[error("the names as of {at} are not complete any more: the server was packed since")]
    PackedAway {
        /// The moment that was read.
        at: Tid,
    },
    /// The server could not be asked.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// A name that two transactions have changed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameConflict {
    /// The name.
    pub(crate) path: NamePath,
    /// The revision that this transaction was made from; [`Tid::ZERO`] where there was none.
    pub(crate) base: Tid,
    /// The revision that there is now; [`Tid::ZERO`] where there is none any more.
    pub(crate) committed: Tid,
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

/// How many conflicts a message tells one by one.
const TOLD: usize = 10;

fn conflicts(all: &[NameConflict]) -> String {
    let mut text = String::from("conflict, nothing was changed: ");
    for conflict in all.iter().take(TOLD) {
        text.push_str(&format!("{conflict}; "));
    }
    if all.len() > TOLD {
        text.push_str(&format!("and {} more; ", all.len() - TOLD));
    }
    if let Some(first) = all.first() {
        text.push_str(&format!("look at `blobferry log {}`, then try again", first.path));
    }
    text
}

fn hint(name: &NameAt) -> String {
    match name.at {
        Some(_) => " (it was not there yet, or it was packed away)".into(),
        None => format!(" (see `blobferry ls {}`)", name.path.parent()),
    }
}
