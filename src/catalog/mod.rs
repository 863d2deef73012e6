//! The catalog of names: a tree of directories, kept in ordinary objects and changed by ordinary transactions.
//!
//! * The root directory is object 0, [`Oid::ROOT`](blobferry_protocol::Oid::ROOT). It exists after the first `put`.
//! * A directory is a trie of small records ([`record`]). It holds a hundred thousand names without a huge one.
//! * A file is an object with a small record and a blob. A new revision of the file is a new revision of the same
//!   object, and its directory does not change.
//! * Everything is read as of one moment: a [`View`].
//! * An [`Edit`] says what a transaction does to names; [`commit()`] applies it, and merges it with what others commit
//!   at the same time. Two writers of one directory both succeed. Two writers of one *file* are a conflict.
//!
//! Why nothing is lost when two transactions meet, although a transaction only locks what it writes: whoever adds
//! or removes a name writes the leaf that the name is in; whoever removes a directory deletes every object of its
//! trie and every file below it; and nothing else ever takes an object out of a trie. So two transactions that
//! disagree about anything write at least one object in common, and the second of them is told.

mod commit;
mod edit;
mod error;
mod objects;
mod path;
mod plan;
mod record;
mod view;

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

pub(crate) use commit::commit;
pub(crate) use edit::Edit;
pub(crate) use error::CatalogError;
#[cfg(test)]
pub(crate) use error::NameConflict;
pub(crate) use objects::{Attempt, Objects, Writes};
pub(crate) use path::{Name, NameAt, NameError, NamePath};
pub(crate) use record::{Entry, FileRecord, Record};
pub(crate) use view::{File, View};
