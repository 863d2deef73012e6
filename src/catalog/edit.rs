//! What one transaction does to the names, independent of what the directories look like when it commits.
//!
//! An [`Edit`] is made once, from the names as the user saw them. It is then applied to the directories as they are
//! when the transaction commits, again and again where others are faster: [`plan`](super::plan) does that.

use std::collections::BTreeMap;

use blobferry_protocol::{Conflict, Oid, Tid};

use super::error::NameConflict;
use super::path::{Name, NamePath};

/// What happens to the names of one directory.
pub(crate) type Changes = BTreeMap<Name, Change>;

/// What happens to one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A new file. Nobody else may have taken the name.
    AddFile {
        /// The file's object.
        oid: Oid,
    },
    /// A directory, made where there is none, and what happens in it.
    Within(Changes),
    /// The file goes.
    RemoveFile {
        /// The file's object: the name must still stand for it.
        oid: Oid,
    },
    /// The directory goes, and all that is in it.
    RemoveDirectory {
        /// The directory's object: the name must still stand for it.
        oid: Oid,
    },
}

/// What one transaction does to the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    changes: Changes,
    files: BTreeMap<Oid, Touched>,
}

/// A file that a transaction stores or deletes. Two transactions that do are a conflict that only people can resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Touched {
    /// What it is called.
    pub(crate) path: NamePath,
    /// The revision that the user has seen; [`Tid::ZERO`] for a new file.
    pub(crate) base: Tid,
}

impl Edit {
    /// Gives a new file its name. The transaction stores the file's object itself.
    pub(crate) fn add_file(&mut self, path: &NamePath, oid: Oid) {
        self.files.insert(oid, Touched { path: path.clone(), base: Tid::ZERO });
        self.change(path, Change::AddFile { oid });
    }

    /// Says that the transaction stores a new revision of a file. Its directory stays as it is.
    pub(crate) fn revise_file(&mut self, path: &NamePath, oid: Oid, base: Tid) {
        self.files.insert(oid, Touched { path: path.clone(), base });
    }

    /// Makes a directory, where there is none. The root is there anyway.
    pub(crate) fn make_directory(&mut self, path: &NamePath) {
        self.within(path.names());
    }

    /// Removes a name and its file.
    pub(crate) fn remove_file(&mut self, path: &NamePath, oid: Oid, base: Tid) {
        self.files.insert(oid, Touched { path: path.clone(), base });
        self.change(path, Change::RemoveFile { oid });
    }

    /// Removes a directory and all that is in it; `files` are the files that the user knows to be there.
    pub(crate) fn remove_directory(
        &mut self,
        path: &NamePath,
        oid: Oid,
        files: impl IntoIterator<Item = (NamePath, Oid, Tid)>,
    ) {
        self.files.extend(files.into_iter().map(|(path, oid, base)| (oid, Touched { path, base })));
        self.change(path, Change::RemoveDirectory { oid });
    }

    /// What happens in the root directory.
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// What is known of a file that this transaction stores or deletes.
    pub(crate) fn file(&self, oid: Oid) -> Option<&Touched> {
        self.files.get(&oid)
    }

    /// The conflicts that only people can resolve: those about files.
    pub(crate) fn conflicts(&self, all: &[Conflict]) -> Vec<NameConflict> {
        let name = |conflict: &Conflict| {
            let Touched { path, base } = self.files.get(&conflict.oid)?;
            Some(NameConflict { path: path.clone(), base: *base, committed: conflict.committed })
        };
        all.iter().filter_map(name).collect()
    }

    fn change(&mut self, path: &NamePath, change: Change) {
        let Some((parents, name)) = path.split_last() else { return };
        if let Some(changes) = self.within(parents) {
            changes.insert(name.clone(), change);
        }
    }

    /// What happens in a directory; `None` where it is removed as a whole.
    fn within(&mut self, path: &[Name]) -> Option<&mut Changes> {
        let mut changes = &mut self.changes;
        for name in path {
            match changes.entry(name.clone()).or_insert_with(|| Change::Within(Changes::new())) {
                Change::Within(inner) => changes = inner,
                _ => return None,
            }
        }
        Some(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> NamePath {
        text.parse().unwrap()
    }

    #[test]
    fn a_directory_that_is_removed_takes_all_that_is_in_it_in_either_order() {
        let (inner, outer) = (path("d/f"), path("d"));
        let mut first = Edit::default();
        first.remove_file(&inner, Oid(2), Tid(7));
        first.remove_directory(&outer, Oid(1), [(inner.clone(), Oid(2), Tid(7))]);
        let mut second = Edit::default();
        second.remove_directory(&outer, Oid(1), [(inner.clone(), Oid(2), Tid(7))]);
        second.remove_file(&inner, Oid(2), Tid(7));
        assert_eq!(first, second);
        assert_eq!(first.changes().len(), 1);
    }

    #[test]
    fn only_conflicts_about_files_are_for_people() {
        let mut edit = Edit::default();
        edit.revise_file(&path("f"), Oid(2), Tid(7));
        let conflict = |oid, committed| Conflict { oid: Oid(oid), committed: Tid(committed), base: Tid(7) };
        let found = edit.conflicts(&[conflict(1, 9), conflict(2, 8)]);
        assert_eq!(found, [NameConflict { path: path("f"), base: Tid(7), committed: Tid(8) }]);
    }
}
