//! Where a blob comes from that is to be stored, and what a transaction does with that: keep it, send it, or share it.

use std::fs::File;
use std::path::PathBuf;

use blobferry_protocol::{BlobInfo, Digest, Oid};
use bytes::Bytes;

#[cfg(doc)]
use crate::client::Transaction;
use crate::client::error::CallError;
use crate::io::Source;
use blobferry_cache::{CacheError, Take, TransactionBuffer};
use blobferry_platform::blobdir::{BlobFile, BlobWriter, WriteError};
use blobferry_platform::os::FileStamp;

/// Where the bytes of a blob come from that is to be stored.
#[derive(Debug)]
pub enum BlobSource {
    /// A file that is moved into the cache, and is the cached blob when the transaction is finished. When it is
    /// aborted the file is gone.
    Moved(PathBuf),
    /// A file that stays; the cache keeps a copy, which shares its blocks where the file system can do that.
    Copied(PathBuf),
    /// A file that is sent from where it is; nothing is cached. Must not change while it is read.
    Streamed(PathBuf),
    /// Bytes in memory; nothing is cached.
    Bytes(Bytes),
    /// What was written with the writer of [`Transaction::spool`]; is the cached blob when the transaction is
    /// finished.
    Spooled(BlobFile),
}

impl BlobSource {
    /// A file that is moved into the cache, and is the cached blob when the transaction is finished. When it is
    /// aborted the file is gone.
    #[must_use]
    pub fn moved(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource::Moved(path.into())
    }

    /// A file that stays; the cache keeps a copy, which shares its blocks where the file system can do that.
    #[must_use]
    pub fn copied(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource::Copied(path.into())
    }

    /// A file that is sent from where it is; nothing is cached. Storing it fails if it changes meanwhile.
    #[must_use]
    pub fn streamed(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource::Streamed(path.into())
    }

    /// Bytes in memory; nothing is cached.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> BlobSource {
        BlobSource::Bytes(bytes.into())
    }
}

/// What is to be done with a blob's bytes.
pub(super) enum Taken {
    Send { source: Source, size: u64 },
    Shared { name: String, info: BlobInfo },
}

pub(super) fn not_taken(oid: Oid, source: WriteError) -> CallError {
    CallError::Cache(CacheError::Take { oid, source })
}

pub(super) fn take(
    buffer: &mut TransactionBuffer,
    oid: Oid,
    source: BlobSource,
    shared: bool,
) -> Result<Taken, CallError> {
    let buffered = match source {
        BlobSource::Moved(path) => buffer.take(oid, &path, Take::Move)?,
        BlobSource::Copied(path) => buffer.take(oid, &path, Take::Copy)?,
        BlobSource::Streamed(path) if shared => buffer.take(oid, &path, Take::Copy)?,
        BlobSource::Spooled(file) => buffer.adopt(oid, file)?,
        BlobSource::Streamed(path) => {
            buffer.remove(oid);
            return stream(path);
        }
        BlobSource::Bytes(bytes) if shared => {
            let mut writer = BlobWriter::create(buffer.tmp(), bytes.len() as u64)
                .map_err(|source| not_taken(oid, source))?;
            writer.write(&bytes).map_err(|source| not_taken(oid, source))?;
            buffer.adopt(oid, writer.complete().map_err(|source| not_taken(oid, source))?)?
        }
        BlobSource::Bytes(bytes) => {
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

/// A file that is sent from where it is.
fn stream(path: PathBuf) -> Result<Taken, CallError> {
    let opened = || {
        // Asked before it is opened: to open a pipe would be to wait for its other end.
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
