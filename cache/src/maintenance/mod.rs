//! Keeping house in a cache: what is in there, what it takes, what may go, and what is to stay.
//!
//! Small blobs in packs are kept and removed with their pack; `small.rs` says how they come there.

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

/// A blob in a cache, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// The blob.
    pub blob: BlobId,
    /// Its file; or the pack that it is in, with others.
    pub path: PathBuf,
    /// How many bytes it has.
    pub size: u64,
    /// How many bytes it takes on the disk.
    pub on_disk: u64,
    /// When it was last handed out, or read.
    pub used: SystemTime,
    /// Whether somebody uses it now.
    pub in_use: bool,
    /// Whether it is to stay.
    pub pinned: bool,
}

/// What a cache takes on the disk. Files come and go while it is looked at, so it is not exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many blobs there are.
    pub blobs: u64,
    /// The bytes of the blobs.
    pub bytes: u64,
    /// The bytes of those blobs that somebody uses now.
    pub in_use: u64,
    /// The bytes of those blobs that are pinned.
    pub pinned: u64,
    /// How many packs of small blobs there are.
    pub segments: u64,
    /// The bytes of those.
    pub segment_bytes: u64,
    /// The bytes of downloads that are under way or broken off, and of the files of open transactions.
    pub unfinished: u64,
    /// The bytes that all of it may have.
    pub limit: Option<u64>,
}

/// What was removed from a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// How many blobs that have files of their own.
    pub blobs: u64,
    /// How many packs of small blobs.
    pub segments: u64,
    /// The bytes that these took on the disk.
    pub bytes: u64,
}

impl Cache {
    /// Sets the limit of the cache, for all processes and for ever, or takes it away; then removes what is too much.
    ///
    /// # Errors
    /// [`CacheError::Quota`]; [`CacheError::ServersOwn`].
    pub fn set_limit(&self, limit: Option<u64>) -> Result<Evicted, CacheError> {
        let quota = self.0.own_quota("limit its size")?;
        quota.set_limit(limit).map(Evicted::from).map_err(CacheError::Quota)
    }

    /// The limit of the cache.
    ///
    /// # Errors
    /// [`CacheError::Quota`].
    pub fn limit(&self) -> Result<Option<u64>, CacheError> {
        self.0.quota().map_or(Ok(None), |quota| quota.limit().map_err(CacheError::Quota))
    }

    /// Whether there could be room for a blob of this size, if all others went: so who knows the size of a blob need not
    /// ask for it in vain. Nothing is removed.
    ///
    /// # Errors
    /// [`CacheError::Write`], with [`WriteError::Full`](blobferry_platform::blobdir::WriteError::Full) or
    /// [`WriteError::NoSpace`](blobferry_platform::blobdir::WriteError::NoSpace).
    pub fn check_space(&self, blob: BlobId, size: u64) -> Result<(), CacheError> {
        let checked = self.0.quota().map_or(Ok(()), |quota| quota.check(size));
        checked.map_err(|source| CacheError::Write { blob, source })
    }

    /// Every blob that has a file of its own, as [`Layout::blobs`](blobferry_platform::blobdir::Layout::blobs) gives them.
    pub fn blobs(&self) -> impl Iterator<Item = Result<CacheEntry, CacheError>> + use<> {
        let root = self.layout().root().to_owned();
        self.layout().blobs().filter_map(move |found| match found {
            Ok((blob, path)) => entry(blob, path).transpose(),
            Err(error) => Some(Err(CacheError::io("list", &root)(error))),
        })
    }

    /// Every small blob that would be read from a pack, pack by pack.
    pub fn packed_blobs(&self) -> impl Iterator<Item = Result<CacheEntry, CacheError>> + use<> {
        let cache = self.clone();
        let numbers = self.0.segments().map_or(Ok(Vec::new()), |segments| segments.numbers());
        let (numbers, failed) = match numbers {
            Ok(numbers) => (numbers, None),
            Err(error) => (Vec::new(), Some(CacheError::io("list", self.layout().segments_dir())(error))),
        };
        let blobs = numbers.into_iter().flat_map(move |number| match cache.packed_in(number) {
            Ok(entries) => entries.into_iter().map(|(_, entry)| Ok(entry)).collect(),
            Err(error) => vec![Err(error)],
        });
        failed.map(Err).into_iter().chain(blobs)
    }

    /// The small blobs that would be read from one pack, with their records' offsets.
    pub(crate) fn packed_in(&self, number: u32) -> Result<Vec<(u64, CacheEntry)>, CacheError> {
        let Some(segments) = self.0.segments() else { return Ok(Vec::new()) };
        let Some(file) = segments.open_segment(number) else { return Ok(Vec::new()) };
        let path = segments.path(number);
        // To look at all of them is to use none of them.
        _ = rustix::fs::fcntl_setfl(&file, OFlags::NOATIME);
        let look = || {
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
        look().map_err(CacheError::io("look at", &path))
    }

    /// What the cache takes on the disk.
    ///
    /// # Errors
    /// [`CacheError::Io`]; [`CacheError::Quota`].
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

    /// Removes what dead processes have left, and partial downloads that nobody goes on with; then blobs and packs, as long as the
    /// cache takes more than `target` bytes, or more than its limit where there is none: those first that were used
    /// longest ago, and none that is in use or pinned.
    ///
    /// # Errors
    /// [`CacheError::Quota`]; [`CacheError::ServersOwn`].
    pub fn gc(&self, target: Option<u64>) -> Result<Evicted, CacheError> {
        let quota = self.0.own_quota("remove blobs")?;
        quota.tidy().map_err(CacheError::Quota)?;
        match target.map_or_else(|| self.limit(), |target| Ok(Some(target)))? {
            Some(target) => quota.shrink(target).map(Evicted::from).map_err(CacheError::Quota),
            None => Ok(Evicted::default()),
        }
    }

    /// Removes everything that is neither in use nor pinned.
    ///
    /// # Errors
    /// As [`Cache::gc`].
    pub fn clear(&self) -> Result<Evicted, CacheError> {
        self.gc(Some(0))
    }

    /// Keeps a blob: it is not removed to make room, until [`Cache::unpin`]. All processes heed that.
    ///
    /// # Errors
    /// [`CacheError::NotCached`]; [`CacheError::NoPins`] where the file system can not note it; [`CacheError::Quota`];
    /// [`CacheError::ServersOwn`].
    pub fn pin(&self, blob: BlobId) -> Result<(), CacheError> {
        self.change_pin(blob, pin::set)
    }

    /// Lets a blob go, if it was pinned, when room is needed.
    ///
    /// # Errors
    /// As [`Cache::pin`].
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
        match quota.change(&file, ATTRIBUTES, || change(&file)).map_err(CacheError::Quota)? {
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

/// Looks at a blob's file; `None` where it has just been removed.
fn entry(blob: BlobId, path: PathBuf) -> Result<Option<CacheEntry>, CacheError> {
    let gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    let file = match fs::File::open(&path) {
        Err(error) if gone(&error) => return Ok(None),
        opened => opened.map_err(CacheError::io("open", &path))?,
    };
    let look = || {
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
    look().map(Some).map_err(CacheError::io("look at", &path))
}
