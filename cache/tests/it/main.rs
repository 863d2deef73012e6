//! The cache as its users see it: threads, processes that die, files of earlier boots,
//! transactions.

#[cfg(test)]
mod api;
#[cfg(test)]
mod boots;
#[cfg(test)]
mod buffer;
#[cfg(test)]
mod cost;
#[cfg(test)]
mod follow;
#[cfg(test)]
mod maintenance;
#[cfg(test)]
mod mounts;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod segments;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod stress;
#[cfg(test)]
mod takeover;
#[cfg(test)]
mod threads;

#[cfg(test)]
mod util {
    //! Helpers of these tests.

    use blobferry_cache::{Cache, CacheConfig, CacheError, CachedBlob, Claim, Download};
    use blobferry_protocol::{BlobId, Digest, Oid, Tid};
    use std::io::Read;
    use std::path::Path;

    /// Returns a blob of bucket 3.
    pub(crate) fn blob(n: u64) -> BlobId {
        BlobId { oid: Oid(3), tid: Tid(n) }
    }

    /// Returns the bytes of most blobs: more than a buffer has, and no two parts alike.
    pub(crate) fn bytes() -> Vec<u8> {
        let mut bytes = vec![0; 300_000];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    pub(crate) fn digest(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    pub(crate) fn open(dir: &Path) -> Cache {
        Cache::open(dir, CacheConfig::default()).unwrap()
    }

    pub(crate) fn read(cached: &CachedBlob) -> Vec<u8> {
        let mut bytes = Vec::new();
        cached.file().read_to_end(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn download(cache: &Cache, blob: BlobId) -> Download {
        match cache.claim(blob).unwrap() {
            Claim::Download(download) => download,
            Claim::Hit(hit) => panic!("{hit:?}"),
        }
    }

    pub(crate) fn finish(mut download: Download) -> CachedBlob {
        let bytes = bytes();
        download.start(0, bytes.len() as u64).unwrap();
        bytes.chunks(100_000).for_each(|chunk| download.write(chunk).unwrap());
        download.finish(digest(&bytes)).unwrap()
    }

    pub(crate) fn size() -> u64 {
        bytes().len() as u64
    }

    /// Writes the bytes `from..to` of the blob in pieces.
    pub(crate) fn send(download: &mut Download, from: usize, to: usize) {
        bytes()[from..to].chunks(70_000).for_each(|piece| download.write(piece).unwrap());
    }

    pub(crate) fn open_limited(dir: &Path, limit: u64) -> Cache {
        Cache::open(dir, CacheConfig { limit: Some(limit), ..CacheConfig::default() }).unwrap()
    }

    /// Returns the bytes of a blob of any size. No two blobs and no two parts are alike.
    pub(crate) fn content(blob: BlobId, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(blob.to_string().as_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Downloads a blob of the given size, if it is missing.
    pub(crate) fn load(cache: &Cache, blob: BlobId, size: usize) -> Result<CachedBlob, CacheError> {
        let mut download = match cache.claim(blob)? {
            Claim::Hit(cached) => return Ok(cached),
            Claim::Download(download) => download,
        };
        download.start(0, size as u64)?;
        let bytes = content(blob, size);
        bytes.chunks(100_000).try_for_each(|chunk| download.write(chunk))?;
        download.finish(digest(&bytes))
    }

    /// Returns the number of unfinished files.
    pub(crate) fn unfinished(cache: &Cache) -> usize {
        let dirs = [cache.buffer().tmp().to_owned(), cache.layout().tmp().join("partial")];
        let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten();
        entries.filter(|entry| entry.as_ref().unwrap().file_name() != ".lock").count()
    }
}
