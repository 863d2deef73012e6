//! The transaction buffer: the files of one transaction until it is committed.
//!
//! A file is taken when it is stored, so that nobody changes it before it is sent, and becomes the cached blob when the
//! transaction is finished: what a machine has written it need not download.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blobferry_protocol::{BlobId, Digest, Oid, Tid};

use crate::cache::Cache;
use crate::cached_blob::CachedBlob;
use crate::error::CacheError;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::blobdir::temp_file::TempFile;
use blobferry_platform::blobdir::{BlobFile, BlobWriter};
use blobferry_platform::os::files;

/// How a file is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It is gone from where it was. Renamed where that is possible; copied and then removed where it is on another
    /// file system, belongs to somebody else, has a second name, or is a symbolic link.
    Move,
    /// It stays. Where the file system can do that, the copy shares its blocks, and costs nothing.
    Copy,
}

/// The files of one transaction that is not committed yet. Dropped without [`TransactionBuffer::finish`], they are
/// removed.
#[derive(Debug)]
pub struct TransactionBuffer {
    cache: Cache,
    files: BTreeMap<Oid, Buffered>,
}

/// A file in a [`TransactionBuffer`].
#[derive(Debug)]
pub struct Buffered {
    file: TempFile,
    size: u64,
    digest: Option<Digest>,
}

impl TransactionBuffer {
    pub(crate) fn new(cache: Cache) -> TransactionBuffer {
        TransactionBuffer { cache, files: BTreeMap::new() }
    }

    /// Takes a file for an object. Of two files for one object the last one counts.
    ///
    /// # Errors
    /// [`CacheError::NotAFile`]; [`CacheError::Changed`]; [`CacheError::Take`]. The file is still where it was then.
    pub fn take(&mut self, oid: Oid, path: &Path, how: Take) -> Result<&Buffered, CacheError> {
        let take = |source| CacheError::Take { oid, source };
        // Asked before it is opened: to open a pipe would be to wait for its other end.
        if !fs::metadata(path).map_err(WriteError::io("open", path)).map_err(take)?.is_file() {
            return Err(CacheError::NotAFile { path: path.to_owned() });
        }
        let moved = match how {
            Take::Move => rename(path, &self.cache).map_err(take)?,
            Take::Copy => None,
        };
        let file = match moved {
            Some(file) => file,
            None => {
                let file = copy(path, &self.cache).map_err(take)?;
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

    /// Takes a file for an object that was written with [`TransactionBuffer::writer`], or another [`BlobWriter`] in
    /// [`TransactionBuffer::tmp`], which is counted only now. Of two files for one object the last one counts.
    ///
    /// # Errors
    /// [`CacheError::Take`] where there is no room for a file that was not counted before.
    pub fn adopt(&mut self, oid: Oid, file: BlobFile) -> Result<&Buffered, CacheError> {
        let (size, digest) = (file.size(), Some(file.digest()));
        let mut file = file.file;
        if let Some(room) = self.cache.room()
            && !file.has_room()
        {
            let reserved =
                room.admit_filled(file.file()).map_err(|source| CacheError::Take { oid, source })?;
            file = file.with_reservation(reserved);
        }
        Ok(self.insert(oid, Buffered { file, size, digest }))
    }

    /// A file to fill with the bytes of a blob, as many as will come, for [`TransactionBuffer::adopt`].
    ///
    /// # Errors
    /// [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn writer(&self) -> Result<BlobWriter, WriteError> {
        self.cache.temporary().map(BlobWriter::over)
    }

    /// Where its files are: in shared mode the server's `tmp/`.
    #[must_use]
    pub fn tmp(&self) -> &Path {
        self.cache.tmp()
    }

    /// The file for an object.
    #[must_use]
    pub fn get(&self, oid: Oid) -> Option<&Buffered> {
        self.files.get(&oid)
    }

    /// Whether it has no files.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Removes the file for an object, which is not to be stored after all.
    pub fn remove(&mut self, oid: Oid) {
        self.files.remove(&oid);
    }

    /// Notes the digest of an object's file, which whoever sends it finds on the way. A file that is finished with its
    /// digest known need not be synced. Without such a file, nothing happens.
    pub fn set_digest(&mut self, oid: Oid, digest: Digest) {
        if let Some(buffered) = self.files.get_mut(&oid) {
            buffered.digest = Some(digest);
        }
    }

    /// The transaction is committed: each file becomes the blob of its object at `tid`. In order of their oids.
    ///
    /// In shared mode the server has made them blobs already, and they are only opened. One that it keeps without a
    /// file is left out.
    ///
    /// # Errors
    /// [`CacheError::Write`] for the first blob that did not get into the cache; the others do nevertheless. The
    /// transaction is committed all the same: what is not in the cache can be downloaded.
    pub fn finish(self, tid: Tid) -> Result<Vec<CachedBlob>, CacheError> {
        let TransactionBuffer { cache, files } = self;
        let mut cached = Vec::with_capacity(files.len());
        let mut failed = None;
        for (oid, buffered) in files {
            let blob = BlobId { oid, tid };
            let published = match cache.is_shared() {
                true => cache.get(blob),
                false => cache
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
    /// The file, open for reading. Its cursor may be anywhere.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Its temporary name. In shared mode the last component is what the server is told.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of its bytes, where it is known.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

/// Renames a file into the cache. `None`, and it is where it was, if it must be copied instead.
fn rename(path: &Path, cache: &Cache) -> Result<Option<TempFile>, WriteError> {
    let metadata = fs::symlink_metadata(path).map_err(WriteError::io("open", path))?;
    // Whoever has another name for it, or owns it, could change the blob later.
    let owned = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.nlink() == 1;
    if !metadata.is_file() || !owned {
        return Ok(None);
    }
    // First, so that a file that can not be read stays where it is.
    let file = File::open(path).map_err(WriteError::io("open", path))?;
    let place = TempFile::create(cache.tmp())?;
    admit(place, &metadata, cache, |place| match files::rename(path, place.path()) {
        Ok(()) => Ok(Some(place.with(file))),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => Ok(None),
        Err(error) => Err(WriteError::io("move", path)(error)),
    })
}

/// Puts a file that has its blocks already into a place in the cache, which has room for it then.
fn admit(
    place: TempFile,
    file: &Metadata,
    cache: &Cache,
    put: impl FnOnce(TempFile) -> Result<Option<TempFile>, WriteError>,
) -> Result<Option<TempFile>, WriteError> {
    let Some(room) = cache.room() else { return put(place) };
    let admitted = room.admit(file.len(), file.blocks().saturating_mul(512), || put(place))?;
    Ok(admitted.map(|(file, reserved)| file.with_reservation(reserved)))
}

/// Copies a file into the cache. `None` if it changed meanwhile.
fn copy(path: &Path, cache: &Cache) -> Result<Option<TempFile>, WriteError> {
    let source = File::open(path).map_err(WriteError::io("open", path))?;
    let metadata = source.metadata().map_err(WriteError::io("open", path))?;
    let size = metadata.len();
    let cloned = admit(TempFile::create(cache.tmp())?, &metadata, cache, |place| {
        Ok(rustix::fs::ioctl_ficlone(place.file(), &source).is_ok().then_some(place))
    })?;
    if cloned.is_some() {
        return Ok(cloned);
    }
    let mut copy = cache.temporary()?;
    copy.reserve(size)?;
    // One byte more than it has would show that it has grown; a log that grows all the time does not keep us.
    let copied = io::copy(&mut (&source).take(size.saturating_add(1)), &mut copy.file())
        .map_err(WriteError::space("copy a file to", copy.path(), size))?;
    Ok((copied == size).then_some(copy))
}
