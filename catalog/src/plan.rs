//! Applying an edit to the current directories: which records to store, and which objects to
//! delete.
//!
//! [`plan`] only reads and computes. Its result is complete, so that the caller can make a new plan
//! if another transaction has changed the directories. This is why two writers merge: an edit says
//! what the user wants, and it does not depend on the records of its first attempt.

use std::collections::BTreeMap;

use blobferry_protocol::{Oid, Tid};

use crate::edit::{Change, Changes, Edit};
use crate::error::{CatalogError, NameConflict};
use crate::objects::Objects;
use crate::path::{Name, NamePath};
use crate::record::{Directory, Entry, FAN_OUT, LEAF_NAMES, MAX_DEPTH, Record, RecordError, child_of};
use crate::view::{View, damaged};

/// Everything that a transaction does to directories, and the files that it deletes.
pub(crate) type Plan = BTreeMap<Oid, Write>;

/// What a transaction does to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// The revision that it is made from; [`Tid::ZERO`] for a new object.
    pub(crate) base: Tid,
    /// The new record; `None` deletes the object.
    pub(crate) data: Option<Vec<u8>>,
}

/// The most oids that one request reserves.
const MAX_RESERVED: usize = 4096;

/// Oids for new objects. The pool keeps them from one plan of a transaction to the next.
pub(crate) struct OidPool<'a, O> {
    objects: &'a O,
    free: Vec<Oid>,
    taken: Vec<Oid>,
}

impl<'a, O: Objects> OidPool<'a, O> {
    /// Returns an empty pool. The first [`take`](Self::take) reserves oids.
    pub(crate) fn new(objects: &'a O) -> OidPool<'a, O> {
        OidPool { objects, free: Vec::new(), taken: Vec::new() }
    }

    /// Makes the oids of the last plan free again.
    fn restart(&mut self) {
        self.free.extend(self.taken.drain(..).rev());
    }

    async fn take(&mut self) -> Result<Oid, CatalogError<O::Error>> {
        if self.free.is_empty() {
            // One oid a request would cost a round trip each. Far too many would waste numbers.
            let count = self.taken.len().clamp(FAN_OUT, MAX_RESERVED) as u32;
            self.free = self.objects.new_oids(count).await?;
            self.free.reverse();
        }
        let oid = self.free.pop().ok_or(CatalogError::NoOids)?;
        self.taken.push(oid);
        Ok(oid)
    }
}

/// Applies `edit` to the directories of `view`.
///
/// # Errors
/// [`CatalogError::Conflict`] if a name of the edit no longer stands for what it did when the edit
/// was made.
pub(crate) async fn plan<'a, O: Objects>(
    view: &View<'a, O>,
    edit: &Edit,
    oids: &mut OidPool<'a, O>,
) -> Result<Plan, CatalogError<O::Error>> {
    oids.restart();
    let mut planner = Planner { view, edit, oids, plan: Plan::new(), todo: Vec::new() };
    let changes: Vec<_> = edit.changes().iter().collect();
    if !changes.is_empty() {
        planner.todo.push(Todo::Change {
            path: NamePath::ROOT,
            oid: Oid::ROOT,
            is_new: false,
            depth: 0,
            changes,
        });
    }
    while let Some(todo) = planner.todo.pop() {
        match todo {
            Todo::Change { path, oid, is_new, depth, changes } => {
                planner.change(path, oid, is_new, depth, changes).await?;
            }
            Todo::Remove { path, oid } => planner.remove(path, oid).await?,
        }
    }
    Ok(planner.plan)
}

struct Planner<'p, 'a, O> {
    view: &'p View<'a, O>,
    edit: &'p Edit,
    oids: &'p mut OidPool<'a, O>,
    plan: Plan,
    todo: Vec<Todo<'p>>,
}

enum Todo<'p> {
    /// Change names in a part of a directory.
    Change { path: NamePath, oid: Oid, is_new: bool, depth: usize, changes: Vec<(&'p Name, &'p Change)> },
    /// Remove a part of a directory, and all that is in it.
    Remove { path: NamePath, oid: Oid },
}

type Entries = BTreeMap<Name, Entry>;

impl<'p, O: Objects> Planner<'p, '_, O> {
    async fn change(
        &mut self,
        path: NamePath,
        oid: Oid,
        is_new: bool,
        depth: usize,
        changes: Vec<(&'p Name, &'p Change)>,
    ) -> Result<(), CatalogError<O::Error>> {
        let node = if is_new { None } else { self.view.node(oid).await? };
        let base = node.as_ref().map_or(Tid::ZERO, |node| node.tid);
        let entries = match node.as_ref().map(|node| &node.directory) {
            None => Entries::new(),
            Some(Directory::Leaf(entries)) => entries.clone(),
            Some(Directory::Branch(children)) => {
                let mut parts: [Vec<_>; FAN_OUT] = Default::default();
                for (name, change) in changes {
                    parts[child_of(name, depth)].push((name, change));
                }
                for (child, changes) in children.iter().zip(parts).filter(|(_, changes)| !changes.is_empty())
                {
                    let (path, oid) = (path.clone(), *child);
                    self.todo.push(Todo::Change { path, oid, is_new: false, depth: depth + 1, changes });
                }
                return Ok(());
            }
        };
        let mut changed = entries.clone();
        for (name, change) in changes {
            self.apply(&path, &mut changed, name, change).await?;
        }
        // The first name creates the root.
        if base == Tid::ZERO || changed != entries {
            self.store(oid, base, depth, changed).await?;
        }
        Ok(())
    }

    /// Applies one change to the names of a leaf.
    async fn apply(
        &mut self,
        parent: &NamePath,
        entries: &mut Entries,
        name: &'p Name,
        change: &'p Change,
    ) -> Result<(), CatalogError<O::Error>> {
        let path = || parent.join(name.clone());
        match (change, entries.get(name).copied()) {
            (Change::AddFile { oid }, None) => {
                entries.insert(name.clone(), Entry::File { oid: *oid });
            }
            (Change::Within(inner), None) => {
                let oid = self.oids.take().await?;
                entries.insert(name.clone(), Entry::Directory { oid });
                self.within(path(), oid, true, inner);
            }
            (Change::Within(inner), Some(Entry::Directory { oid })) => self.within(path(), oid, false, inner),
            (Change::RemoveFile { oid }, Some(Entry::File { oid: now })) if *oid == now => {
                entries.remove(name);
                self.remove_file(path(), now).await?;
            }
            (Change::RemoveDirectory { oid }, Some(Entry::Directory { oid: now })) if *oid == now => {
                entries.remove(name);
                self.todo.push(Todo::Remove { path: path(), oid: now });
            }
            (change, now) => return Err(self.conflict(path(), change, now).await?),
        }
        Ok(())
    }

    fn within(&mut self, path: NamePath, oid: Oid, is_new: bool, changes: &'p Changes) {
        if is_new || !changes.is_empty() {
            self.todo.push(Todo::Change { path, oid, is_new, depth: 0, changes: changes.iter().collect() });
        }
    }

    /// Stores names as a leaf; if there are more than [`LEAF_NAMES`], as a branch with leaves.
    async fn store(
        &mut self,
        oid: Oid,
        base: Tid,
        depth: usize,
        entries: Entries,
    ) -> Result<(), CatalogError<O::Error>> {
        let mut todo = vec![(oid, base, depth, entries)];
        while let Some((oid, base, depth, entries)) = todo.pop() {
            let directory = if entries.len() <= LEAF_NAMES || depth >= MAX_DEPTH {
                Directory::Leaf(entries)
            } else {
                let mut parts: [Entries; FAN_OUT] = Default::default();
                for (name, entry) in entries {
                    parts[child_of(&name, depth)].insert(name, entry);
                }
                let mut children = [Oid::ROOT; FAN_OUT];
                for (child, part) in children.iter_mut().zip(parts) {
                    *child = self.oids.take().await?;
                    todo.push((*child, Tid::ZERO, depth + 1, part));
                }
                Directory::Branch(children)
            };
            let data = Some(Record::Directory(directory).encode());
            self.plan.insert(oid, Write { base, data });
        }
        Ok(())
    }

    async fn remove(&mut self, path: NamePath, oid: Oid) -> Result<(), CatalogError<O::Error>> {
        let Some(node) = self.view.node(oid).await? else { return Err(self.view.missing(oid)) };
        match &node.directory {
            Directory::Branch(children) => {
                self.todo.extend(children.iter().map(|oid| Todo::Remove { path: path.clone(), oid: *oid }));
            }
            Directory::Leaf(entries) => {
                for (name, entry) in entries {
                    let path = path.join(name.clone());
                    match *entry {
                        Entry::File { oid } => self.remove_file(path, oid).await?,
                        Entry::Directory { oid } => self.todo.push(Todo::Remove { path, oid }),
                    }
                }
            }
        }
        if self.plan.insert(oid, Write { base: node.tid, data: None }).is_some() {
            return Err(damaged(oid, node.tid, RecordError::Damaged));
        }
        Ok(())
    }

    /// Deletes a file's object, based on the revision that the user has seen. A file that the user
    /// has not seen is a conflict.
    async fn remove_file(&mut self, path: NamePath, oid: Oid) -> Result<(), CatalogError<O::Error>> {
        match self.edit.file(oid) {
            Some(file) => {
                self.plan.insert(oid, Write { base: file.base, data: None });
                Ok(())
            }
            None => {
                let committed = self.view.file(oid).await?.tid;
                Err(CatalogError::Conflict(vec![NameConflict { path, base: Tid::ZERO, committed }]))
            }
        }
    }

    /// Returns the conflict about a name that no longer stands for what it did when the edit was
    /// made.
    async fn conflict(
        &self,
        path: NamePath,
        change: &Change,
        now: Option<Entry>,
    ) -> Result<CatalogError<O::Error>, CatalogError<O::Error>> {
        let committed = match now {
            None => Tid::ZERO,
            Some(Entry::File { oid }) => self.view.file(oid).await?.tid,
            Some(Entry::Directory { oid }) => self.view.node(oid).await?.map_or(Tid::ZERO, |node| node.tid),
        };
        let base = match change {
            Change::RemoveFile { oid } => self.edit.file(*oid).map_or(Tid::ZERO, |file| file.base),
            _ => Tid::ZERO,
        };
        Ok(CatalogError::Conflict(vec![NameConflict { path, base, committed }]))
    }
}
