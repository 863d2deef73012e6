//! Applying an edit to the directories as they are: which records to store, and which objects to delete.
//!
//! This only reads and computes. What it returns is complete, so that it can simply be made anew where others have
//! changed the directories meanwhile. Two writers merge because of it: what is applied again is what the user
//! wanted, not what the records then happened to be.

use std::collections::BTreeMap;

use blobferry_protocol::{Oid, Tid};

use super::edit::{Change, Changes, Edit};
use super::error::{CatalogError, NameConflict};
use super::objects::Objects;
use super::path::{Name, NamePath};
use super::record::{Directory, Entry, FAN_OUT, LEAF_NAMES, MAX_DEPTH, Record, child_of};
use super::view::View;

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

/// Oids for new objects. They stay with the transaction from one plan to the next.
pub(crate) struct OidPool<'a, O> {
    objects: &'a O,
    free: Vec<Oid>,
    taken: Vec<Oid>,
}

impl<'a, O: Objects> OidPool<'a, O> {
    /// Nothing is asked for before it is needed.
    pub(crate) fn new(objects: &'a O) -> OidPool<'a, O> {
        OidPool { objects, free: Vec::new(), taken: Vec::new() }
    }

    /// What the last plan took can be taken again.
    fn restart(&mut self) {
        self.free.extend(self.taken.drain(..).rev());
    }

    async fn take(&mut self) -> Result<Oid, CatalogError> {
        if self.free.is_empty() {
            // One by one would be a round trip each; far too many would be a waste of numbers.
            let count = self.taken.len().clamp(FAN_OUT, 4096) as u32;
            self.free = self.objects.new_oids(count).await?;
            self.free.reverse();
        }
        let oid = self.free.pop().ok_or_else(no_oids)?;
        self.taken.push(oid);
        Ok(oid)
    }
}

fn no_oids() -> CatalogError {
    let detail = "it gave no oids for new objects".to_owned();
    CatalogError::Remote(blobferry_protocol::RequestError::Failed { detail }.into())
}

/// Applies `edit` to the directories as they are in `view`.
///
/// # Errors
/// [`CatalogError::Conflict`] where the names that the edit is about are not any more what they were.
pub(crate) async fn plan<'a, O: Objects>(
    view: &View<'a, O>,
    edit: &Edit,
    oids: &mut OidPool<'a, O>,
) -> Result<Plan, CatalogError> {
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
    ) -> Result<(), CatalogError> {
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
        // The root comes into being with the first name.
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
    ) -> Result<(), CatalogError> {
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
            (change, now) => return Err(self.taken(path(), change, now).await?),
        }
        Ok(())
    }

    fn within(&mut self, path: NamePath, oid: Oid, is_new: bool, changes: &'p Changes) {
        if is_new || !changes.is_empty() {
            self.todo.push(Todo::Change { path, oid, is_new, depth: 0, changes: changes.iter().collect() });
        }
    }

    /// Stores names as a leaf, or as a branch with leaves where they are too many.
    async fn store(
        &mut self,
        oid: Oid,
        base: Tid,
        depth: usize,
        entries: Entries,
    ) -> Result<(), CatalogError> {
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

    async fn remove(&mut self, path: NamePath, oid: Oid) -> Result<(), CatalogError> {
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
            let damage = super::record::RecordError::Damaged;
            return Err(super::view::damaged(oid, node.tid, damage));
        }
        Ok(())
    }

    /// Deletes a file's object: the revision that the user has seen. One that nobody has seen is not deleted.
    async fn remove_file(&mut self, path: NamePath, oid: Oid) -> Result<(), CatalogError> {
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

    /// The conflict about a name that is not what it was when the edit was made.
    async fn taken(
        &self,
        path: NamePath,
        change: &Change,
        now: Option<Entry>,
    ) -> Result<CatalogError, CatalogError> {
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
