//! Watching one name: whether an invalidation means that the name has a new revision.

use std::collections::BTreeSet;

use blobferry_protocol::{Oid, Tid};

use crate::error::CatalogError;
use crate::objects::Objects;
use crate::path::{NameAt, NamePath};
use crate::record::Entry;
use crate::view::{File, View};

/// A name whose revision is followed from one invalidation to the next.
///
/// A client reports every commit as an invalidation: the transaction, and the objects that it
/// changed. Pass each of them to [`update`](Self::update), in order. It loads something only if the
/// name may be affected.
///
/// ```
/// # use blobferry_catalog::{CatalogError, Objects, Watch};
/// # use blobferry_transport_tokio::{CallError, Client};
/// async fn follow(client: Client) -> Result<(), CatalogError<CallError>> {
///     let mut invalidations = client.invalidations();
///     let name = "models/small.bin".parse().expect("a valid name");
///     let mut watch = Watch::new(client.session(), name).await?;
///     while let Some(commit) = invalidations.next().await {
///         if watch.update(client.session(), commit.tid, commit.oids.as_deref()).await? {
///             println!("{:?}", watch.file().map(|file| file.tid));
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Watch {
    name: NamePath,
    tid: Tid,
    file: Option<File>,
    /// The objects that decide what the name stands for: directories on the way, and the file.
    objects: BTreeSet<Oid>,
}

impl Watch {
    /// Resolves a name as of now, and begins to follow it. The name need not exist.
    ///
    /// Subscribe to the client's invalidations before this call, so that no commit is missed.
    ///
    /// # Errors
    /// [`CatalogError::IsADirectory`] if the name is a directory; the errors of [`View::find`]
    /// except [`CatalogError::NotADirectory`].
    pub async fn new<O: Objects>(objects: &O, name: NamePath) -> Result<Watch, CatalogError<O::Error>> {
        let tid = objects.last_tid();
        let mut watch = Watch { name, tid, file: None, objects: BTreeSet::new() };
        watch.resolve(objects, tid).await?;
        Ok(watch)
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &NamePath {
        &self.name
    }

    /// Returns the current revision of the file; `None` if no file has this name.
    #[must_use]
    pub fn file(&self) -> Option<File> {
        self.file
    }

    /// Returns whether a commit may have changed the name. `oids` are the changed objects; `None`
    /// means that any object may have changed.
    #[must_use]
    pub fn may_change(&self, tid: Tid, oids: Option<&[Oid]>) -> bool {
        tid > self.tid && oids.is_none_or(|oids| oids.iter().any(|oid| self.objects.contains(oid)))
    }

    /// Takes an invalidation, and returns whether the name has another revision now, or is new, or
    /// was removed.
    ///
    /// Invalidations that are not newer than the last one are ignored.
    ///
    /// # Errors
    /// As [`Watch::new`]. The watch then stays as it was, and the same invalidation can be passed
    /// again.
    pub async fn update<O: Objects>(
        &mut self,
        objects: &O,
        tid: Tid,
        oids: Option<&[Oid]>,
    ) -> Result<bool, CatalogError<O::Error>> {
        if !self.may_change(tid, oids) {
            self.tid = self.tid.max(tid);
            return Ok(false);
        }
        let before = self.file;
        self.resolve(objects, tid).await?;
        Ok(self.file != before)
    }

    async fn resolve<O: Objects>(&mut self, objects: &O, tid: Tid) -> Result<(), CatalogError<O::Error>> {
        let view = View::upto(objects, tid);
        let entry = match view.find(&self.name).await {
            // A file in the place of a directory: the name does not exist.
            Err(CatalogError::NotADirectory { .. }) => None,
            found => found?,
        };
        let file = match entry {
            None => None,
            Some(Entry::File { oid }) => Some(view.file(oid).await?),
            Some(Entry::Directory { .. }) => {
                return Err(CatalogError::IsADirectory { path: self.name.clone() });
            }
        };
        self.objects = view.nodes_read();
        self.objects.extend(file.map(|file| file.oid));
        (self.tid, self.file) = (tid, file);
        Ok(())
    }
}

impl From<&Watch> for NameAt {
    /// The watched name, as of the last invalidation.
    fn from(watch: &Watch) -> NameAt {
        NameAt { path: watch.name.clone(), at: Some(watch.tid) }
    }
}
