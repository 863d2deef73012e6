//! The names as of one moment.
//!
//! Whatever is read through one [`View`] belongs together: it is what was committed at its snapshot, and what
//! others commit meanwhile is not seen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blobferry_protocol::{BlobInfo, Oid, Revision, Tid};

use super::error::CatalogError;
use super::objects::Objects;
use super::path::{Name, NameAt, NamePath};
use super::record::{Directory, Entry, FileRecord, MAX_DEPTH, Record, RecordError, child_of};
use crate::concurrent::{REQUESTS, each};

/// How many names are remembered, so that looking up many of one directory does not load it again for each.
const REMEMBERED_NAMES: usize = 1 << 16;

/// The names as of one moment.
pub(crate) struct View<'a, O> {
    objects: &'a O,
    snapshot: Tid,
    /// Parts of directories that were read. They never change: the snapshot does not.
    nodes: RefCell<Nodes>,
}

#[derive(Default)]
struct Nodes {
    by_oid: BTreeMap<Oid, Option<Rc<Node>>>,
    names: usize,
}

/// One object of a directory's trie.
pub(crate) struct Node {
    /// Its revision.
    pub(crate) tid: Tid,
    /// Its record.
    pub(crate) directory: Directory,
}

/// One revision of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Its object.
    pub(crate) oid: Oid,
    /// The transaction that stored it.
    pub(crate) tid: Tid,
    /// What is kept beside its bytes.
    pub(crate) record: FileRecord,
    /// Its bytes.
    pub(crate) blob: BlobInfo,
}

impl<'a, O: Objects> View<'a, O> {
    /// The names as of now.
    pub(crate) fn now(objects: &'a O) -> View<'a, O> {
        View::upto(objects, objects.last_tid())
    }

    /// The names as of a transaction that the caller knows to be committed.
    pub(crate) fn upto(objects: &'a O, snapshot: Tid) -> View<'a, O> {
        View { objects, snapshot, nodes: RefCell::default() }
    }

    /// The names as of a transaction that somebody asks for.
    ///
    /// # Errors
    /// [`CatalogError::NotYet`] where it is not committed yet: the answer could still change.
    pub(crate) fn at(objects: &'a O, at: Tid) -> Result<View<'a, O>, CatalogError> {
        let last = objects.last_tid();
        if at > last { Err(CatalogError::NotYet { at, last }) } else { Ok(View::upto(objects, at)) }
    }

    /// The objects that this is a view of.
    pub(crate) fn objects(&self) -> &'a O {
        self.objects
    }

    /// The revision of an object that is current in this view.
    pub(crate) async fn revision(&self, oid: Oid) -> Result<Option<Revision>, CatalogError> {
        let before = Tid(self.snapshot.0.saturating_add(1));
        Ok(self.objects.load_before(oid, before).await?)
    }

    /// A part of a directory. The root is `None` until the first name is put; any other part must be there.
    pub(crate) async fn node(&self, oid: Oid) -> Result<Option<Rc<Node>>, CatalogError> {
        if let Some(node) = self.nodes.borrow().by_oid.get(&oid) {
            return Ok(node.clone());
        }
        let node = match self.revision(oid).await? {
            None if oid == Oid::ROOT => None,
            None => return Err(self.missing(oid)),
            Some(revision) => match decode(oid, &revision)? {
                Record::Directory(directory) => Some(Rc::new(Node { tid: revision.tid, directory })),
                Record::File(_) => return Err(damaged(oid, revision.tid, RecordError::Kind)),
            },
        };
        self.nodes.borrow_mut().remember(oid, node.clone());
        Ok(node)
    }

    /// What a name of a directory stands for.
    pub(crate) async fn lookup(&self, directory: Oid, name: &Name) -> Result<Option<Entry>, CatalogError> {
        let mut oid = directory;
        for depth in 0..=MAX_DEPTH {
            let Some(node) = self.node(oid).await? else { return Ok(None) };
            match &node.directory {
                Directory::Leaf(entries) => return Ok(entries.get(name).copied()),
                Directory::Branch(children) => match children.get(child_of(name, depth)) {
                    Some(child) => oid = *child,
                    None => break,
                },
            }
        }
        Err(damaged(oid, self.snapshot, RecordError::Damaged))
    }

    /// What a path leads to; `None` where there is nothing of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotADirectory`] where the path goes through a file.
    pub(crate) async fn find(&self, path: &NamePath) -> Result<Option<Entry>, CatalogError> {
        let mut at = Entry::Directory { oid: Oid::ROOT };
        for (depth, name) in path.names().iter().enumerate() {
            let Entry::Directory { oid } = at else {
                let file = path.names().get(..depth).unwrap_or_default();
                return Err(CatalogError::NotADirectory { path: file.into() });
            };
            match self.lookup(oid, name).await? {
                Some(entry) => at = entry,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// What a path leads to.
    ///
    /// # Errors
    /// [`CatalogError::NoSuchName`], or those of [`View::find`].
    pub(crate) async fn get(&self, name: &NameAt) -> Result<Entry, CatalogError> {
        let entry = self.find(&name.path).await?;
        entry.ok_or_else(|| CatalogError::NoSuchName { name: name.clone() })
    }

    /// The file that a path leads to.
    ///
    /// # Errors
    /// [`CatalogError::IsADirectory`], or those of [`View::get`].
    pub(crate) async fn get_file(&self, name: &NameAt) -> Result<File, CatalogError> {
        match self.get(name).await? {
            Entry::File { oid } => self.file(oid).await,
            Entry::Directory { .. } => Err(CatalogError::IsADirectory { path: name.path.clone() }),
        }
    }

    /// The revision of a file that is current in this view.
    pub(crate) async fn file(&self, oid: Oid) -> Result<File, CatalogError> {
        let Some(revision) = self.revision(oid).await? else { return Err(self.missing(oid)) };
        let tid = revision.tid;
        match (decode(oid, &revision)?, revision.blob) {
            (Record::File(record), Some(blob)) => Ok(File { oid, tid, record, blob }),
            _ => Err(damaged(oid, tid, RecordError::Kind)),
        }
    }

    /// All names of a directory, in order.
    pub(crate) async fn list(&self, directory: Oid) -> Result<BTreeMap<Name, Entry>, CatalogError> {
        let mut names = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut level = vec![directory];
        while !level.is_empty() {
            // A damaged trie may lead back to where it came from.
            if let Some(oid) = level.iter().find(|oid| !seen.insert(**oid)) {
                return Err(damaged(*oid, self.snapshot, RecordError::Damaged));
            }
            let nodes = each(REQUESTS, level, |oid| self.node(oid)).await?;
            level = Vec::new();
            for node in nodes.into_iter().flatten() {
                match &node.directory {
                    Directory::Leaf(entries) => {
                        names.extend(entries.iter().map(|(name, entry)| (name.clone(), *entry)));
                    }
                    Directory::Branch(children) => level.extend(children),
                }
            }
        }
        Ok(names)
    }

    /// All files below a directory, with their paths.
    pub(crate) async fn files_below(
        &self,
        path: &NamePath,
        directory: Oid,
    ) -> Result<Vec<(NamePath, Oid)>, CatalogError> {
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        let mut directories = vec![(path.clone(), directory)];
        while let Some((path, oid)) = directories.pop() {
            if !seen.insert(oid) {
                return Err(damaged(oid, self.snapshot, RecordError::Damaged));
            }
            for (name, entry) in self.list(oid).await? {
                match entry {
                    Entry::File { oid } => files.push((path.join(name), oid)),
                    Entry::Directory { oid } => directories.push((path.join(name), oid)),
                }
            }
        }
        Ok(files)
    }

    /// Something that is referred to is not there. In the newest view that is damage; an older one may have been
    /// packed away.
    pub(crate) fn missing(&self, oid: Oid) -> CatalogError {
        if self.snapshot < self.objects.last_tid() {
            CatalogError::PackedAway { at: self.snapshot }
        } else {
            CatalogError::Missing { oid }
        }
    }
}

impl Nodes {
    fn remember(&mut self, oid: Oid, node: Option<Rc<Node>>) {
        let names = match node.as_deref() {
            Some(Node { directory: Directory::Leaf(entries), .. }) => entries.len() + 1,
            _ => 1,
        };
        if self.names + names > REMEMBERED_NAMES {
            *self = Nodes::default();
        }
        self.names += names;
        self.by_oid.insert(oid, node);
    }
}

fn decode(oid: Oid, revision: &Revision) -> Result<Record, CatalogError> {
    Record::decode(&revision.data).map_err(|source| damaged(oid, revision.tid, source))
}

/// The error for an object that can not be what it should be.
pub(crate) fn damaged(oid: Oid, tid: Tid, source: RecordError) -> CatalogError {
    CatalogError::Damaged { oid, tid, source }
}
