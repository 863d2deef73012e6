//! The names as of one transaction.
//!
//! Everything read through one [`View`] is consistent: it is what was committed at the view's
//! snapshot. Later commits are not visible in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blobferry_protocol::{BlobInfo, Oid, Revision, Tid};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::REQUESTS;

use crate::error::CatalogError;
use crate::objects::Objects;
use crate::path::{Name, NameAt, NamePath};
use crate::record::{Directory, Entry, FileRecord, MAX_DEPTH, Record, RecordError, child_of};

/// The number of names that a view keeps in memory. Many lookups in one directory then load it only
/// once.
const CACHED_NAMES: usize = 1 << 16;

/// The names as of one transaction, its *snapshot*.
///
/// The futures of a view are `Send` if those of its objects are, so that a task of any runtime can
/// use it.
pub struct View<'a, O> {
    objects: &'a O,
    snapshot: Tid,
    /// The parts of directories that were read. They never change, because the snapshot does not.
    nodes: Mutex<Nodes>,
}

impl<O> fmt::Debug for View<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("snapshot", &self.snapshot).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Nodes {
    by_oid: BTreeMap<Oid, Option<Arc<Node>>>,
    names: usize,
}

/// One object of a directory's trie.
#[derive(Debug)]
pub(crate) struct Node {
    /// The transaction that stored it.
    pub(crate) tid: Tid,
    /// Its record.
    pub(crate) directory: Directory,
}

/// One revision of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// The file's object.
    pub oid: Oid,
    /// The transaction that stored this revision.
    pub tid: Tid,
    /// The file's attributes.
    pub record: FileRecord,
    /// Size and digest of the file's bytes. The bytes are the blob of `oid` and `tid`.
    pub blob: BlobInfo,
}

impl<'a, O: Objects> View<'a, O> {
    /// Returns the names as of the last transaction that the client knows of.
    pub fn now(objects: &'a O) -> View<'a, O> {
        View::upto(objects, objects.last_tid())
    }

    /// Returns the names as of a transaction that the caller knows to be committed.
    pub fn upto(objects: &'a O, snapshot: Tid) -> View<'a, O> {
        View { objects, snapshot, nodes: Mutex::default() }
    }

    /// Returns the names as of a transaction.
    ///
    /// # Errors
    /// [`CatalogError::NotYet`] if the transaction is newer than the last one: the answer could
    /// still change.
    pub fn at(objects: &'a O, at: Tid) -> Result<View<'a, O>, CatalogError<O::Error>> {
        let last = objects.last_tid();
        if at > last { Err(CatalogError::NotYet { at, last }) } else { Ok(View::upto(objects, at)) }
    }

    /// Returns the objects that this is a view of.
    pub fn objects(&self) -> &'a O {
        self.objects
    }

    /// Returns the oids of all parts of directories that were read.
    pub(crate) fn nodes_read(&self) -> BTreeSet<Oid> {
        self.nodes().by_oid.keys().copied().collect()
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the revision of an object that is current in this view.
    async fn revision(&self, oid: Oid) -> Result<Option<Revision>, CatalogError<O::Error>> {
        let before = Tid(self.snapshot.0.saturating_add(1));
        Ok(self.objects.load_before(oid, before).await?)
    }

    /// Returns a part of a directory. The root is `None` until the first commit; any other part
    /// must exist.
    pub(crate) async fn node(&self, oid: Oid) -> Result<Option<Arc<Node>>, CatalogError<O::Error>> {
        if let Some(node) = self.nodes().by_oid.get(&oid).cloned() {
            return Ok(node);
        }
        let node = match self.revision(oid).await? {
            None if oid == Oid::ROOT => None,
            None => return Err(self.missing(oid)),
            Some(revision) => match decode(oid, &revision)? {
                Record::Directory(directory) => Some(Arc::new(Node { tid: revision.tid, directory })),
                Record::File(_) => return Err(damaged(oid, revision.tid, RecordError::Kind)),
            },
        };
        self.nodes().insert(oid, node.clone());
        Ok(node)
    }

    /// Returns what a name of a directory stands for; `None` if the directory does not contain it.
    ///
    /// # Errors
    /// Those of a damaged or missing directory, and of the requests.
    pub async fn lookup(&self, directory: Oid, name: &Name) -> Result<Option<Entry>, CatalogError<O::Error>> {
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

    /// Resolves a path; `None` if it does not exist.
    ///
    /// # Errors
    /// [`CatalogError::NotADirectory`] if the path continues below a file, or the errors of
    /// [`lookup`](Self::lookup).
    pub async fn find(&self, path: &NamePath) -> Result<Option<Entry>, CatalogError<O::Error>> {
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

    /// Resolves a path that must exist. The transaction of `name` is used for the error only: the
    /// view has its own.
    ///
    /// # Errors
    /// [`CatalogError::NoSuchName`], or the errors of [`View::find`].
    pub async fn get(&self, name: &NameAt) -> Result<Entry, CatalogError<O::Error>> {
        let entry = self.find(&name.path).await?;
        entry.ok_or_else(|| CatalogError::NoSuchName { name: name.clone() })
    }

    /// Resolves a path that must be a file.
    ///
    /// # Errors
    /// [`CatalogError::IsADirectory`], or the errors of [`View::get`].
    pub async fn get_file(&self, name: &NameAt) -> Result<File, CatalogError<O::Error>> {
        match self.get(name).await? {
            Entry::File { oid } => self.file(oid).await,
            Entry::Directory { .. } => Err(CatalogError::IsADirectory { path: name.path.clone() }),
        }
    }

    /// Returns the revision of a file that is current in this view.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] if the object is not a file; [`CatalogError::Missing`] or
    /// [`CatalogError::PackedAway`] if it does not exist.
    pub async fn file(&self, oid: Oid) -> Result<File, CatalogError<O::Error>> {
        let Some(revision) = self.revision(oid).await? else { return Err(self.missing(oid)) };
        let tid = revision.tid;
        match (decode(oid, &revision)?, revision.blob) {
            (Record::File(record), Some(blob)) => Ok(File { oid, tid, record, blob }),
            _ => Err(damaged(oid, tid, RecordError::Kind)),
        }
    }

    /// Returns all names of a directory, in order.
    ///
    /// # Errors
    /// Those of a damaged or missing directory, and of the requests.
    pub async fn list(&self, directory: Oid) -> Result<BTreeMap<Name, Entry>, CatalogError<O::Error>> {
        let mut names = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut level = vec![directory];
        while !level.is_empty() {
            // A damaged trie may refer to an object twice, or contain a cycle.
            if let Some(oid) = level.iter().find(|oid| !seen.insert(**oid)) {
                return Err(damaged(*oid, self.snapshot, RecordError::Damaged));
            }
            let nodes = stream::iter(level).map(|oid| self.node(oid)).buffered(REQUESTS);
            let nodes: Vec<_> = nodes.try_collect().await?;
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

    /// Returns all files below a directory, with their paths. `path` is the directory's own.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn files_below(
        &self,
        path: &NamePath,
        directory: Oid,
    ) -> Result<Vec<(NamePath, Oid)>, CatalogError<O::Error>> {
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

    /// Returns the error for an object that a directory refers to and that does not exist. In the
    /// newest view that is damage. In an older view a pack may have removed it.
    pub(crate) fn missing(&self, oid: Oid) -> CatalogError<O::Error> {
        if self.snapshot < self.objects.last_tid() {
            CatalogError::PackedAway { at: self.snapshot }
        } else {
            CatalogError::Missing { oid }
        }
    }
}

impl Nodes {
    fn insert(&mut self, oid: Oid, node: Option<Arc<Node>>) {
        let names = match node.as_deref() {
            Some(Node { directory: Directory::Leaf(entries), .. }) => entries.len() + 1,
            _ => 1,
        };
        if self.names + names > CACHED_NAMES {
            *self = Nodes::default();
        }
        self.names += names;
        self.by_oid.insert(oid, node);
    }
}

fn decode<E>(oid: Oid, revision: &Revision) -> Result<Record, CatalogError<E>> {
    Record::decode(&revision.data).map_err(|source| damaged(oid, revision.tid, source))
}

/// Returns the error for an object whose record is not one that its place requires.
pub(crate) fn damaged<E>(oid: Oid, tid: Tid, source: RecordError) -> CatalogError<E> {
    CatalogError::Damaged { oid, tid, source }
}
