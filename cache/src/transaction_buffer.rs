//! The transaction buffer: the files of one transaction until it is committed.
//!
//! A file is taken when it is stored, so that no process changes it before it is sent. When the
//! transaction is finished, it becomes the cached blob: a machine need not download what it has
//! written itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blobferry_platform::blobdir::{BlobFile, BlobWriter, TempFile, WriteError};
use blobferry_platform::os::files;
use blobferry_protocol::{BlobId, Digest, Oid, Tid};

use crate::cache::Cache;
use crate::cache_dir::{CacheDir, Found};
use crate::cached_blob::CachedBlob;
use crate::error::CacheError;

/// How a file is taken into a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Removes the file from its path. It is renamed if possible. It is copied and then removed if
    /// it is on another file system, has another owner or a second name, or is a symbolic link.
    Move,
    /// Leaves the file at its path. If the file system supports it, the copy shares the blocks of
    /// the original.
    Copy,
}

/// The files of one transaction that is not committed yet. Dropped without
/// [`TransactionBuffer::finish`], they are removed.
#[derive(Debug)]
pub struct TransactionBuffer {
    dir: CacheDir,
    files: BTreeMap<Oid, Buffered>,
}

/// A file in a [`TransactionBuffer`].
#[derive(Debug)]
pub struct Buffered {
    file: TempFile,
    size: u64,
    digest: Option<Digest>,
}

impl Cache {
    /// Returns an empty buffer for the files of one transaction.
    #[must_use]
    pub fn buffer(&self) -> TransactionBuffer {
        TransactionBuffer { dir: self.0.clone(), files: BTreeMap::new() }
    }
}

impl TransactionBuffer {
    /// Takes a file for an object. It replaces an earlier file for the object.
    ///
    /// # Errors
    /// Returns [`CacheError::NotAFile`] if the path leads to anything but a regular file;
    /// [`CacheError::Changed`] if another process wrote to the file while it was copied;
    /// [`CacheError::Take`]. The file is then still at its path.
    pub fn take(&mut self, oid: Oid, path: &Path, how: Take) -> Result<&Buffered, CacheError> {
        let take = |source| CacheError::Take { oid, source };
        // Before it is opened: opening a pipe waits for its other end.
        if !fs::metadata(path).map_err(WriteError::io("open", path)).map_err(take)?.is_file() {
            return Err(CacheError::NotAFile { path: path.to_owned() });
        }
        let moved = match how {
            Take::Move => rename(path, &self.dir).map_err(take)?,
            Take::Copy => None,
        };
        let file = match moved {
            Some(file) => file,
            None => {
                let file = copy(path, &self.dir).map_err(take)?;
                let file = file.ok_or_else(|| CacheError::Changed { path: path.to_owned() })?;
                if how == Take::Move {
                    fs::remove_file(path).map_err(WriteError::io("remove", path)).map_err(take)?;
                }
                file
            }
        };
        let size =
            file.file().metadata().map_err(WriteError::io("read the size of", path)).map_err(take)?.len();
        Ok(self.insert(oid, Buffered { file, size, digest: None }))
    }

    /// Adopts a file for an object. It replaces an earlier file for the object.
    ///
    /// The file was written with [`TransactionBuffer::writer`], or with another [`BlobWriter`] in
    /// [`TransactionBuffer::tmp`], whose bytes the quota counts only now.
    ///
    /// # Errors
    /// Returns [`CacheError::Take`] if the quota has no space for a file that it did not count
    /// before.
    pub fn adopt(&mut self, oid: Oid, file: BlobFile) -> Result<&Buffered, CacheError> {
        let (size, digest) = (file.size(), Some(file.digest()));
        let mut file = file.file;
        if let Some(quota) = self.dir.quota()
            && !file.has_reservation()
        {
            let reservation =
                quota.reserve_filled(file.file()).map_err(|source| CacheError::Take { oid, source })?;
            file = file.with_reservation(reservation);
        }
        Ok(self.insert(oid, Buffered { file, size, digest }))
    }

    /// Creates a file to fill with the bytes of a blob of any size, for
    /// [`TransactionBuffer::adopt`].
    ///
    /// # Errors
    /// Returns [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn writer(&self) -> Result<BlobWriter, WriteError> {
        self.dir.create_temp_file().map(BlobWriter::new)
    }

    /// Returns the directory of its files. In shared mode it is the server's `tmp/`.
    #[must_use]
    pub fn tmp(&self) -> &Path {
        self.dir.tmp()
    }

    /// Returns the file for an object.
    #[must_use]
    pub fn get(&self, oid: Oid) -> Option<&Buffered> {
        self.files.get(&oid)
    }

    /// Returns whether it has no files.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Removes the file for an object, which is not to be stored any more.
    pub fn remove(&mut self, oid: Oid) {
        self.files.remove(&oid);
    }

    /// Records the digest of an object's file, which the sender has computed. Does nothing if the
    /// object has no file.
    ///
    /// A file with a known digest need not be synced when the transaction is finished.
    pub fn set_digest(&mut self, oid: Oid, digest: Digest) {
        if let Some(buffered) = self.files.get_mut(&oid) {
            buffered.digest = Some(digest);
        }
    }

    /// Makes each file the blob of its object at `tid`: the transaction is committed. Returns the
    /// blobs in the order of their object ids.
    ///
    /// In shared mode the server has made the files blobs already, so they are only opened. The
    /// result lacks a blob that the server keeps without a file.
    ///
    /// # Errors
    /// Returns [`CacheError::Write`] for the first blob that did not get into the cache. The other
    /// blobs do get into it. The transaction is committed in any case: a blob that is missing in
    /// the cache can be downloaded.
    pub fn finish(self, tid: Tid) -> Result<Vec<CachedBlob>, CacheError> {
        let TransactionBuffer { dir, files } = self;
        let mut cached = Vec::with_capacity(files.len());
        let mut failed = None;
        for (oid, buffered) in files {
            let blob = BlobId { oid, tid };
            let published = match dir.is_shared() {
                true => dir.lookup(blob).map(|found| match found {
                    Found::Ready(cached) => Some(cached),
                    Found::Unverified(..) | Found::Missing => None,
                }),
                false => dir
                    .publish(blob, buffered.file, buffered.digest)
                    .map(Some)
                    .map_err(|source| CacheError::Write { blob, source }),
            };
            match published {
                Ok(blob) => cached.extend(blob),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(cached), Err)
    }

    fn insert(&mut self, oid: Oid, buffered: Buffered) -> &Buffered {
        match self.files.entry(oid) {
            Entry::Vacant(entry) => entry.insert(buffered),
            Entry::Occupied(mut entry) => {
                entry.insert(buffered);
                entry.into_mut()
            }
        }
    }
}

impl Buffered {
    /// Returns the file, open for reading. Its cursor may be anywhere.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Returns its temporary name. In shared mode the client sends the last component to the
    /// server.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of its bytes, if it is known.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

/// Renames a file into the cache. Returns `None`, and leaves the file, if it must be copied
/// instead.
fn rename(path: &Path, dir: &CacheDir) -> Result<Option<TempFile>, WriteError> {
    let metadata = fs::symlink_metadata(path).map_err(WriteError::io("open", path))?;
    // Another owner, or another name, would allow changes to the blob.
    let owned = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.nlink() == 1;
    if !metadata.is_file() || !owned {
        return Ok(None);
    }
    // First, so that an unreadable file stays at its path.
    let file = File::open(path).map_err(WriteError::io("open", path))?;
    let place = TempFile::create(dir.tmp())?;
    admit(place, &metadata, dir, |place| match files::rename(path, place.path()) {
        Ok(()) => Ok(Some(place.with(file))),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => Ok(None),
        Err(error) => Err(WriteError::io("move", path)(error)),
    })
}

/// Takes space for a file that has its blocks already, and puts it into the cache with `put`.
fn admit(
    place: TempFile,
    file: &Metadata,
    dir: &CacheDir,
    put: impl FnOnce(TempFile) -> Result<Option<TempFile>, WriteError>,
) -> Result<Option<TempFile>, WriteError> {
    let Some(quota) = dir.quota() else { return put(place) };
    let admitted = quota.reserve_with(file.len(), file.blocks().saturating_mul(512), || put(place))?;
    Ok(admitted.map(|(file, reservation)| file.with_reservation(reservation)))
}

/// Copies a file into the cache. Returns `None` if its size changed meanwhile.
fn copy(path: &Path, dir: &CacheDir) -> Result<Option<TempFile>, WriteError> {
    let source = File::open(path).map_err(WriteError::io("open", path))?;
    let metadata = source.metadata().map_err(WriteError::io("open", path))?;
    let size = metadata.len();
    let cloned = admit(TempFile::create(dir.tmp())?, &metadata, dir, |place| {
        Ok(rustix::fs::ioctl_ficlone(place.file(), &source).is_ok().then_some(place))
    })?;
    if cloned.is_some() {
        return Ok(cloned);
    }
    let mut copy = dir.create_temp_file()?;
    copy.reserve(size)?;
    // One more byte would show that the file has grown. The limit ends the copy of a log that grows
    // all the time.
    let copied = io::copy(&mut (&source).take(size.saturating_add(1)), &mut copy.file())
        .map_err(WriteError::space("copy a file to", copy.path(), size))?;
    Ok((copied == size).then_some(copy))
}
