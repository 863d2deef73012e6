//! The source of a blob to store, and what a transaction does with it: keep it, send it, or share it.

use std::fs::File;
use std::path::PathBuf;

use blobferry_cache::{CacheError, Take, TransactionBuffer};
use blobferry_platform::blobdir::{BlobFile, BlobWriter, WriteError};
use blobferry_platform::os::FileStamp;
use blobferry_protocol::{BlobInfo, Digest, Oid};
use bytes::Bytes;

use crate::client::error::CallError;
use crate::io::Source;

/// The source of a blob to store: a file, or bytes.
#[derive(Debug)]
pub struct BlobSource(Kind);

#[derive(Debug)]
enum Kind {
    Moved(PathBuf),
    Copied(PathBuf),
    Streamed(PathBuf),
    Bytes(Bytes),
    Spooled(BlobFile),
}

impl BlobSource {
    /// A file that is moved into the cache. It becomes the cached blob when the transaction is committed. If the
    /// transaction is aborted, the file is deleted.
    #[must_use]
    pub fn moved(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource(Kind::Moved(path.into()))
    }

    /// A file that stays in its place. The cache keeps a copy, which shares its blocks if the file system can do that.
    #[must_use]
    pub fn copied(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource(Kind::Copied(path.into()))
    }

    /// A file that is sent from its place; nothing is cached. Storing it fails if the file changes meanwhile.
    #[must_use]
    pub fn streamed(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource(Kind::Streamed(path.into()))
    }

    /// Bytes in memory; nothing is cached.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> BlobSource {
        BlobSource(Kind::Bytes(bytes.into()))
    }

    /// The bytes that were written with the writer of [`Transaction::spool`](super::Transaction::spool). They become the cached blob when the
    /// transaction is committed.
    #[must_use]
    pub fn spooled(file: BlobFile) -> BlobSource {
        BlobSource(Kind::Spooled(file))
    }

    /// Returns whether taking the source can wait for a disk.
    pub(super) fn is_file(&self) -> bool {
        !matches!(self.0, Kind::Bytes(_))
    }
}

impl From<PathBuf> for BlobSource {
    /// See [`BlobSource::streamed`]: the file is left as it is.
    fn from(path: PathBuf) -> BlobSource {
        BlobSource::streamed(path)
    }
}

impl From<Bytes> for BlobSource {
    fn from(bytes: Bytes) -> BlobSource {
        BlobSource::bytes(bytes)
    }
}

/// How a blob's bytes get to the server.
pub(super) enum Taken {
    /// They are sent.
    Send { source: Source, size: u64 },
    /// They are in a directory that the server shares, under this name.
    Shared { name: String, info: BlobInfo },
}

pub(super) fn not_taken(oid: Oid, source: WriteError) -> CallError {
    CallError::Cache(CacheError::Take { oid, source })
}

/// Takes a source into a transaction.
pub(super) fn take(
    buffer: &mut TransactionBuffer,
    oid: Oid,
    source: BlobSource,
    shared: bool,
) -> Result<Taken, CallError> {
    let buffered = match source.0 {
        Kind::Moved(path) => buffer.take(oid, &path, Take::Move)?,
        Kind::Copied(path) => buffer.take(oid, &path, Take::Copy)?,
        Kind::Streamed(path) if shared => buffer.take(oid, &path, Take::Copy)?,
        Kind::Spooled(file) => buffer.adopt(oid, file)?,
        Kind::Streamed(path) => {
            buffer.remove(oid);
            return stream(path);
        }
        Kind::Bytes(bytes) if shared => {
            let mut writer = BlobWriter::create(buffer.tmp(), bytes.len() as u64)
                .map_err(|source| not_taken(oid, source))?;
            writer.write(&bytes).map_err(|source| not_taken(oid, source))?;
            buffer.adopt(oid, writer.complete().map_err(|source| not_taken(oid, source))?)?
        }
        Kind::Bytes(bytes) => {
            buffer.remove(oid);
            let size = bytes.len() as u64;
            return Ok(Taken::Send { source: Source::memory(bytes, size).hashed(), size });
        }
    };
    let file = buffered.file().try_clone();
    let path = buffered.path().to_owned();
    let failed = |source| CallError::File { path: path.clone(), source };
    let (file, size) = (file.map_err(failed)?, buffered.size());
    if !shared {
        return Ok(Taken::Send { source: Source::file(file, size).hashed(), size });
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(&path).map_err(failed)?).map_err(failed)?;
    let digest = Digest(*hasher.finalize().as_bytes());
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Taken::Shared { name, info: BlobInfo { size, digest } })
}

/// Opens a file that is sent from its place.
fn stream(path: PathBuf) -> Result<Taken, CallError> {
    let opened = || {
        // Before the file is opened: opening a pipe would wait for its other end.
        let regular = std::fs::metadata(&path)?.is_file();
        if !regular {
            return Ok(None);
        }
        let file = File::open(&path)?;
        let stamp = FileStamp::of(&file)?;
        Ok(Some((file, stamp)))
    };
    match opened() {
        Ok(Some((file, stamp))) => {
            let size = stamp.size();
            Ok(Taken::Send { source: Source::file(file, size).hashed().unchanged(stamp), size })
        }
        Ok(None) => Err(CacheError::NotAFile { path }.into()),
        Err(source) => Err(CallError::File { path, source }),
    }
}
