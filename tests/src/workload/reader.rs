//! Uses a cache: downloads blobs, whole or in part, and adds blobs of its own.

use std::io::{self, Read};
use std::path::Path;

use blobferry_cache::{Cache, CacheConfig, CacheError, CachedBlob, Claim, Download, SmallClaim, Take};
use blobferry_protocol::BlobId;

use super::Emit;
use crate::contents::digest;
use crate::ledger::Statement;

/// Reads a cached blob from its beginning.
pub(crate) fn read_blob(cached: &CachedBlob) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file: &std::fs::File = cached.file();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Uses a cache, with blobs whose bytes are known.
pub(crate) struct Reader<'a> {
    cache: Cache,
    emit: Emit<'a>,
}

impl<'a> Reader<'a> {
    pub(crate) fn open(dir: &Path, emit: Emit<'a>) -> Result<Reader<'a>, CacheError> {
        let cache = Cache::open(dir, CacheConfig::default()).inspect_err(|error| failed(emit, error))?;
        Ok(Reader { cache, emit })
    }

    /// Ensures that a blob is cached: downloads it if it is missing, and continues a partial
    /// download.
    pub(crate) fn ensure_cached(&self, blob: BlobId, bytes: &[u8]) -> Result<(), CacheError> {
        let ensure = || match self.cache.claim(blob)? {
            Claim::Hit(cached) => Ok(cached),
            Claim::Download(download) => fetch(download, bytes),
        };
        let cached = self.note(ensure())?;
        (self.emit)(Statement::Cached { blob });
        self.compare(&cached, bytes);
        Ok(())
    }

    /// Loads a small blob into memory, and keeps it in a segment if it was missing. After a crash
    /// it may exist or not.
    pub(crate) fn load(&self, blob: BlobId, bytes: &[u8]) -> Result<(), CacheError> {
        let load = || match self.cache.claim_small(blob)? {
            SmallClaim::Bytes(found) => Ok(Some(found)),
            SmallClaim::File(cached) => {
                self.compare(&cached, bytes);
                Ok(None)
            }
            SmallClaim::Download(download) => {
                download.finish_small(&bytes.to_vec().into(), digest(bytes), |write| write())?;
                Ok(self.cache.packed(blob))
            }
        };
        if self.note(load())?.is_some_and(|found| found != bytes) {
            (self.emit)(Statement::Violation { what: format!("{blob} is torn in a segment") });
        }
        Ok(())
    }

    /// Downloads a part of a blob. With `keep`, the part stays for the next download.
    pub(crate) fn download_part(&self, blob: BlobId, bytes: &[u8], keep: bool) -> Result<(), CacheError> {
        let begin = || {
            let Claim::Download(mut download) = self.cache.claim(blob)? else { return Ok(()) };
            download.start(0, bytes.len() as u64)?;
            let half = bytes.len() / 2;
            bytes.chunks(5_000).take(half.div_ceil(5_000)).try_for_each(|chunk| download.write(chunk))?;
            if keep {
                download.leave();
            }
            Ok(())
        };
        self.note(begin())
    }

    /// Adds a blob that was written and committed.
    pub(crate) fn write(&self, blob: BlobId, bytes: &[u8]) -> Result<(), CacheError> {
        let write = || {
            let mut buffer = self.cache.buffer();
            let failed = |source| CacheError::Write { blob, source };
            let mut writer = buffer.writer().map_err(failed)?;
            bytes.chunks(5_000).try_for_each(|chunk| writer.write(chunk)).map_err(failed)?;
            buffer.adopt(blob.oid, writer.complete().map_err(failed)?)?;
            buffer.finish(blob.tid).map(drop)
        };
        self.note(write())?;
        (self.emit)(Statement::Cached { blob });
        Ok(())
    }

    /// Adds a copy of a file whose digest is not known.
    pub(crate) fn copy(&self, blob: BlobId, file: &Path) -> Result<(), CacheError> {
        let copy = || {
            let mut buffer = self.cache.buffer();
            buffer.take(blob.oid, file, Take::Copy)?;
            buffer.finish(blob.tid).map(drop)
        };
        self.note(copy())?;
        (self.emit)(Statement::Cached { blob });
        Ok(())
    }

    /// Pins a blob.
    pub(crate) fn pin(&self, blob: BlobId) -> Result<(), CacheError> {
        self.note(self.cache.pin(blob).map(drop))
    }

    /// Evicts the least recently used blobs until few are left. Any of `blobs` may go.
    pub(crate) fn make_room(&self, blobs: impl IntoIterator<Item = BlobId>) -> Result<(), CacheError> {
        blobs.into_iter().for_each(|blob| (self.emit)(Statement::Uncached { blob }));
        self.note(self.cache.gc(Some(100_000)).map(drop))
    }

    fn compare(&self, cached: &CachedBlob, bytes: &[u8]) {
        match read_blob(cached) {
            Ok(found) if found == bytes => {}
            Ok(found) => {
                let what = format!("{} is torn in the cache: {} bytes", cached.blob(), found.len());
                (self.emit)(Statement::Violation { what });
            }
            Err(error) => (self.emit)(Statement::Failed { what: error.to_string() }),
        }
    }

    fn note<T>(&self, result: Result<T, CacheError>) -> Result<T, CacheError> {
        result.inspect_err(|error| failed(self.emit, error))
    }
}

fn failed(emit: Emit<'_>, error: &CacheError) {
    emit(Statement::Failed { what: error.to_string() });
}

/// Downloads a blob from a server that has these bytes.
pub(crate) fn fetch(mut download: Download, bytes: &[u8]) -> Result<CachedBlob, CacheError> {
    download.resume()?;
    loop {
        match fetch_rest(&mut download, bytes) {
            Err(CacheError::Stale { .. }) => {}
            done => return done,
        }
    }
}

fn fetch_rest(download: &mut Download, bytes: &[u8]) -> Result<CachedBlob, CacheError> {
    let from = download.written();
    // If the part is longer than the blob, the server sends only the size.
    let rest = usize::try_from(from).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
    download.start(from, bytes.len() as u64)?;
    rest.chunks(5_000).try_for_each(|chunk| download.write(chunk))?;
    download.finish(digest(bytes))
}
