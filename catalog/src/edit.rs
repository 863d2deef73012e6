//! What one transaction does to names, independent of the records of the directories.
//!
//! An [`Edit`] is made once, from the names that the user saw. [`commit`](crate::commit()) applies
//! it to the current directories, and again if another transaction was faster.

use std::collections::BTreeMap;

use blobferry_protocol::{Conflict, Oid, Tid};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::REQUESTS;
use crate::error::{CatalogError, NameConflict};
use crate::objects::Objects;
use crate::path::{Name, NamePath};
use crate::record::Entry;
use crate::view::View;

/// What happens to the names of one directory.
pub(crate) type Changes = BTreeMap<Name, Change>;

/// What happens to one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A file is added. The name must still be free.
    AddFile {
        /// The file's object.
        oid: Oid,
    },
    /// A directory is made if it does not exist, and its names are changed.
    Within(Changes),
    /// A file is removed.
    RemoveFile {
        /// The file's object: the name must still stand for it.
        oid: Oid,
    },
    /// A directory is removed with everything in it.
    RemoveDirectory {
        /// The directory's object: the name must still stand for it.
        oid: Oid,
    },
}

/// What one transaction does to names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    changes: Changes,
    files: BTreeMap<Oid, Touched>,
}

/// A file that a transaction stores or deletes. Two transactions that touch one file conflict, and
/// only users can resolve that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Touched {
    /// The file's path.
    pub(crate) path: NamePath,
    /// The revision that the user has seen; [`Tid::ZERO`] for a new file.
    pub(crate) base: Tid,
}

/// The object that a transaction must store to put a file under a name: see [`Edit::put_files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The file's object.
    pub oid: Oid,
    /// The revision to store it from; [`Tid::ZERO`] for a new file.
    pub base: Tid,
}

impl Edit {
    /// Puts files under `paths`, and returns the object of each, in the same order.
    ///
    /// A path that is a file in `view` gets a new revision. Any other path is added with a new
    /// object. Missing directories are made. The caller then stores each target's record and blob
    /// in the transaction, and calls [`commit`](crate::commit()).
    ///
    /// # Errors
    /// [`CatalogError::IsADirectory`] if a path is a directory; the errors of [`View::find`], and
    /// of the requests.
    pub async fn put_files<O: Objects>(
        &mut self,
        view: &View<'_, O>,
        paths: &[NamePath],
    ) -> Result<Vec<Target>, CatalogError<O::Error>> {
        let found = stream::iter(paths.iter().cloned()).map(|path| existing_file(view, path));
        let found: Vec<Option<Target>> = found.buffered(REQUESTS).try_collect().await?;
        let new = found.iter().filter(|target| target.is_none()).count();
        let oids = match u32::try_from(new).unwrap_or(u32::MAX) {
            0 => Vec::new(),
            new => view.objects().new_oids(new).await?,
        };
        let mut oids = oids.into_iter();
        let mut targets = Vec::with_capacity(paths.len());
        for (path, existing) in paths.iter().zip(found) {
            targets.push(match existing {
                Some(target) => {
                    self.revise_file(path, target.oid, target.base);
                    target
                }
                None => {
                    let oid = oids.next().ok_or(CatalogError::NoOids)?;
                    self.add_file(path, oid);
                    Target { oid, base: Tid::ZERO }
                }
            });
        }
        Ok(targets)
    }

    /// Gives a new file a name. The caller stores the file's object in the transaction.
    pub fn add_file(&mut self, path: &NamePath, oid: Oid) {
        self.files.insert(oid, Touched { path: path.clone(), base: Tid::ZERO });
        self.change(path, Change::AddFile { oid });
    }

    /// Records that the transaction stores a new revision of a file. The file's directory does not
    /// change.
    pub fn revise_file(&mut self, path: &NamePath, oid: Oid, base: Tid) {
        self.files.insert(oid, Touched { path: path.clone(), base });
    }

    /// Makes a directory if it does not exist. The root always exists.
    pub fn make_directory(&mut self, path: &NamePath) {
        self.within(path.names());
    }

    /// Removes a name and its file.
    pub fn remove_file(&mut self, path: &NamePath, oid: Oid, base: Tid) {
        self.files.insert(oid, Touched { path: path.clone(), base });
        self.change(path, Change::RemoveFile { oid });
    }

    /// Removes a directory and everything in it. `files` are the files that the user has seen below
    /// it, with their revisions.
    pub fn remove_directory(
        &mut self,
        path: &NamePath,
        oid: Oid,
        files: impl IntoIterator<Item = (NamePath, Oid, Tid)>,
    ) {
        self.files.extend(files.into_iter().map(|(path, oid, base)| (oid, Touched { path, base })));
        self.change(path, Change::RemoveDirectory { oid });
    }

    /// Returns the changes in the root directory.
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Returns a file that this transaction stores or deletes.
    pub(crate) fn file(&self, oid: Oid) -> Option<&Touched> {
        self.files.get(&oid)
    }

    /// Returns the conflicts about files, which only users can resolve.
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

    /// Returns the changes in a directory; `None` if the directory is removed as a whole.
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

/// Returns the file that has this name already, and its revision.
async fn existing_file<O: Objects>(
    view: &View<'_, O>,
    path: NamePath,
) -> Result<Option<Target>, CatalogError<O::Error>> {
    match view.find(&path).await? {
        None => Ok(None),
        Some(Entry::File { oid }) => Ok(Some(Target { oid, base: view.file(oid).await?.tid })),
        Some(Entry::Directory { .. }) => Err(CatalogError::IsADirectory { path }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> NamePath {
        text.parse().unwrap()
    }

    #[test]
    fn removing_a_directory_covers_its_files_in_any_order() {
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
    fn only_conflicts_about_files_are_returned() {
        let mut edit = Edit::default();
        edit.revise_file(&path("f"), Oid(2), Tid(7));
        let conflict = |oid, committed| Conflict { oid: Oid(oid), committed: Tid(committed), base: Tid(7) };
        let found = edit.conflicts(&[conflict(1, 9), conflict(2, 8)]);
        assert_eq!(found, [NameConflict { path: path("f"), base: Tid(7), committed: Tid(8) }]);
    }
}
