//! Maintenance of a cache: listing, usage, the limit, eviction on request, and pins.
//!
//! Small blobs in segments are evicted with their segment.

pub(crate) mod pin;
pub(crate) mod verify;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use blobferry_protocol::BlobId;
use rustix::fs::OFlags;

use crate::cache::Cache;
use crate::error::CacheError;
use crate::lock::Owned;
use crate::quota::evict;
use crate::quota::evict::Search;
use crate::segments::record;
use crate::segments::record::Head;

/// A blob in a cache, as it was when it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// The blob.
    pub blob: BlobId,
    /// The path of its file, or of the segment that it is in.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The number of bytes that it occupies on the disk.
    pub on_disk: u64,
    /// When it was last handed out or read.
    pub used: SystemTime,
    /// Whether a process uses it now.
    pub in_use: bool,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// What a cache occupies on the disk. It is not exact, because files come and go meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The number of blobs with files of their own.
    pub blobs: u64,
    /// The bytes that these occupy.
    pub bytes: u64,
    /// The bytes of the blobs that a process uses now.
    pub in_use: u64,
    /// The bytes of the blobs that are pinned.
    pub pinned: u64,
    /// The number of segments of small blobs.
    pub segments: u64,
    /// The bytes that the segments occupy.
    pub segment_bytes: u64,
    /// The bytes of partial downloads and of the files of open transactions.
    pub unfinished: u64,
    /// The limit in bytes for all of it.
    pub limit: Option<u64>,
}

/// What was evicted from a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// The number of blobs that had files of their own.
    pub blobs: u64,
    /// The number of segments of small blobs.
    pub segments: u64,
    /// The bytes that these occupied on the disk.
    pub bytes: u64,
}

impl Cache {
    /// Sets or removes the limit of the cache, permanently and for all processes. Then evicts what
    /// is above it.
    ///
    /// # Errors
    /// Returns [`CacheError::Quota`]; [`CacheError::ServersOwn`] in shared mode.
    pub fn set_limit(&self, limit: Option<u64>) -> Result<Evicted, CacheError> {
        let quota = self.0.own_quota("limit its size")?;
        quota.set_limit(limit).map(Evicted::from).map_err(CacheError::Quota)
    }

    /// Returns the limit of the cache in bytes. `None` means no limit.
    ///
    /// # Errors
    /// Returns [`CacheError::Quota`].
    pub fn limit(&self) -> Result<Option<u64>, CacheError> {
        self.0.quota().map_or(Ok(None), |quota| quota.limit().map_err(CacheError::Quota))
    }

    /// Fails if a blob of `size` bytes could not fit even if all other files were evicted. Evicts
    /// nothing. A caller that knows the size of a blob can thus avoid a useless request.
    ///
    /// # Errors
    /// Returns [`CacheError::Write`] with
    /// [`WriteError::Full`](blobferry_platform::blobdir::WriteError::Full) or
    /// [`WriteError::NoSpace`](blobferry_platform::blobdir::WriteError::NoSpace).
    pub fn check_space(&self, blob: BlobId, size: u64) -> Result<(), CacheError> {
        let checked = self.0.quota().map_or(Ok(()), |quota| quota.check(size));
        checked.map_err(|source| CacheError::Write { blob, source })
    }

    /// Returns all blobs that have files of their own, in the order of
    /// [`Layout::blobs`](blobferry_platform::blobdir::Layout::blobs).
    pub fn blobs(&self) -> impl Iterator<Item = Result<CacheEntry, CacheError>> + use<> {
        let root = self.layout().root().to_owned();
        self.layout().blobs().filter_map(move |found| match found {
            Ok((blob, path)) => entry(blob, path).transpose(),
            Err(error) => Some(Err(CacheError::io("list", &root)(error))),
        })
    }

    /// Returns all small blobs that would be read from a segment, segment by segment.
    pub fn packed_blobs(&self) -> impl Iterator<Item = Result<CacheEntry, CacheError>> + use<> {
        let cache = self.clone();
        let numbers = self.0.segments().map_or(Ok(Vec::new()), |segments| segments.numbers());
        let (numbers, failed) = match numbers {
            Ok(numbers) => (numbers, None),
            Err(error) => (Vec::new(), Some(CacheError::io("list", self.layout().segments_dir())(error))),
        };
        let blobs = numbers.into_iter().flat_map(move |number| match cache.small_blobs_in(number) {
            Ok(entries) => entries.into_iter().map(|(_, entry)| Ok(entry)).collect(),
            Err(error) => vec![Err(error)],
        });
        failed.map(Err).into_iter().chain(blobs)
    }

    /// Returns the small blobs that would be read from one segment, with the offsets of their
    /// records.
    pub(crate) fn small_blobs_in(&self, number: u32) -> Result<Vec<(u64, CacheEntry)>, CacheError> {
        let Some(segments) = self.0.segments() else { return Ok(Vec::new()) };
        let Some(file) = segments.open_segment(number) else { return Ok(Vec::new()) };
        let path = segments.path(number);
        // Listing is no use: it must not change the access time.
        _ = rustix::fs::fcntl_setfl(&file, OFlags::NOATIME);
        let read = || {
            let (used, in_use) = (file.metadata()?.accessed()?, Owned::try_new(&file)?.is_none());
            let entry = |head: Head| {
                let on_disk = head.record_len();
                CacheEntry {
                    blob: head.blob,
                    path: path.clone(),
                    size: head.size,
                    on_disk,
                    used,
                    in_use,
                    pinned: false,
                }
            };
            let mut entries = Vec::new();
            for found in record::all(&file) {
                let (at, head) = found?;
                if segments.reads_from(head.blob, number, at) {
                    entries.push((at, entry(head)));
                }
            }
            Ok(entries)
        };
        read().map_err(CacheError::io("read the attributes of", &path))
    }

    /// Returns what the cache occupies on the disk.
    ///
    /// # Errors
    /// Returns [`CacheError::Io`]; [`CacheError::Quota`].
    pub fn usage(&self) -> Result<Usage, CacheError> {
        let unfinished =
            evict::unfinished(self.layout()).map_err(CacheError::io("list", self.layout().tmp()))?;
        let mut usage = Usage { unfinished, limit: self.limit()?, ..Usage::default() };
        for entry in self.blobs() {
            let entry = entry?;
            usage.blobs += 1;
            usage.bytes += entry.on_disk;
            usage.in_use += if entry.in_use { entry.on_disk } else { 0 };
            usage.pinned += if entry.pinned { entry.on_disk } else { 0 };
        }
        if let Some(segments) = self.0.segments() {
            for number in segments.numbers().map_err(CacheError::io("list", self.layout().segments_dir()))? {
                if let Some(metadata) = segments.open_segment(number).and_then(|file| file.metadata().ok()) {
                    usage.segments += 1;
                    usage.segment_bytes += metadata.blocks().saturating_mul(512);
                }
            }
        }
        Ok(usage)
    }

    /// Removes what dead processes left, and partial downloads that no process continues. Then
    /// evicts blobs and segments until the cache occupies at most `target` bytes (`None`: its
    /// limit).
    ///
    /// The least recently used files go first, and none that is in use or pinned.
    ///
    /// # Errors
    /// Returns [`CacheError::Quota`]; [`CacheError::ServersOwn`] in shared mode.
    pub fn gc(&self, target: Option<u64>) -> Result<Evicted, CacheError> {
        let quota = self.0.own_quota("remove blobs")?;
        quota.tidy().map_err(CacheError::Quota)?;
        match target.map_or_else(|| self.limit(), |target| Ok(Some(target)))? {
            Some(target) => quota.shrink(target).map(Evicted::from).map_err(CacheError::Quota),
            None => Ok(Evicted::default()),
        }
    }

    /// Evicts everything that is neither in use nor pinned.
    ///
    /// # Errors
    /// As for [`Cache::gc`].
    pub fn clear(&self) -> Result<Evicted, CacheError> {
        self.gc(Some(0))
    }

    /// Pins a blob: no process evicts it, until [`Cache::unpin`].
    ///
    /// # Errors
    /// Returns [`CacheError::NotCached`]; [`CacheError::NoPins`] if the file system has no extended
    /// attributes; [`CacheError::Quota`]; [`CacheError::ServersOwn`] in shared mode.
    pub fn pin(&self, blob: BlobId) -> Result<(), CacheError> {
        self.change_pin(blob, pin::set)
    }

    /// Unpins a blob. Does nothing if it is not pinned.
    ///
    /// # Errors
    /// As for [`Cache::pin`].
    pub fn unpin(&self, blob: BlobId) -> Result<(), CacheError> {
        self.change_pin(blob, pin::remove)
    }

    fn change_pin(
        &self,
        blob: BlobId,
        change: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<(), CacheError> {
        const ATTRIBUTES: u64 = 4096;
        let quota = self.0.own_quota("pin blobs")?;
        let path = self.layout().blob_path(blob);
        let Some((file, _)) = self.0.open_blob(blob)? else { return Err(CacheError::NotCached { blob }) };
        match quota.grow(&file, ATTRIBUTES, || change(&file)).map_err(CacheError::Quota)? {
            Err(error) if pin::is_unsupported(&error) => Err(CacheError::NoPins { path }),
            changed => changed.map_err(CacheError::io("pin or unpin", &path)),
        }
    }
}

impl From<Search> for Evicted {
    fn from(search: Search) -> Evicted {
        Evicted { blobs: search.removed, segments: search.segments, bytes: search.freed }
    }
}

/// Reads a blob's entry. Returns `None` if its file was just removed.
fn entry(blob: BlobId, path: PathBuf) -> Result<Option<CacheEntry>, CacheError> {
    let gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    let file = match fs::File::open(&path) {
        Err(error) if gone(&error) => return Ok(None),
        opened => opened.map_err(CacheError::io("open", &path))?,
    };
    let read = || {
        let metadata = file.metadata()?;
        Ok(CacheEntry {
            blob,
            path: path.clone(),
            size: metadata.len(),
            on_disk: metadata.blocks().saturating_mul(512),
            used: metadata.accessed()?,
            in_use: Owned::try_new(&file)?.is_none(),
            pinned: pin::is_pinned(&file)?,
        })
    };
    read().map(Some).map_err(CacheError::io("read the attributes of", &path))
}
