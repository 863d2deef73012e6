//! Eviction: the least recently used files go first, and none that is in use or pinned.
//!
//! All of this happens under the lock of the usage file, so in one process at a time. A walk
//! through the directory recounts the bytes, and remembers the least recently used blobs and
//! segments. They are removed one by one, as space is needed, in this call and later ones, until
//! the memory is empty; then the next walk begins. A file that was used after it was remembered is
//! skipped. When nothing else is left, the index of the segments is removed.
//!
//! Before the first walk, the files of dead processes are removed, and partial downloads that no
//! process continues.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, DirEntry, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blobferry_protocol::BlobId;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::lock::{FileLock, Owned};
use crate::maintenance::pin;
use crate::quota::account::{self, Accuracy, UsageFile};
use crate::quota::scratch::{self, PLACEHOLDER};
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::blobdir::layout::segment_number;
use blobferry_platform::blobdir::layout::{Layout, SEGMENT_INDEX};
use blobferry_platform::os::allocate::slack;
use blobferry_platform::os::files;
use blobferry_platform::sync::MutexGuard;

/// The number of files that a walk remembers.
const QUEUE_LENGTH: usize = 256;

/// The usage file, locked, and the candidates for eviction.
pub(crate) struct QuotaGuard<'a> {
    layout: &'a Layout,
    /// The path of the usage file.
    path: &'a Path,
    pub(crate) usage: UsageFile,
    queue: MutexGuard<'a, Queue>,
}

/// The least recently used files, in this order.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Candidate>);

/// A file as it was when it was remembered. Ordered by its last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    used: (i64, i64),
    what: What,
    inode: u64,
}

/// A file that can be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Blob(BlobId),
    Segment(u32),
}

impl What {
    fn path(self, layout: &Layout) -> PathBuf {
        match self {
            What::Blob(blob) => layout.blob_path(blob),
            What::Segment(number) => layout.segment_path(number),
        }
    }
}

/// One search for files to evict. It visits no file twice.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// The last candidate that was visited. All candidates up to it are evicted, or cannot be.
    passed: Option<Candidate>,
    /// The number of walks left, so that the search ends even if blobs are used faster than it
    /// visits them. `None` before the first walk.
    walks: Option<u64>,
    /// The number of blobs and of segments that were evicted, and their bytes.
    pub(crate) removed: u64,
    pub(crate) segments: u64,
    pub(crate) freed: u64,
}

impl<'a> QuotaGuard<'a> {
    pub(crate) fn new(
        layout: &'a Layout,
        path: &'a Path,
        usage: UsageFile,
        queue: MutexGuard<'a, Queue>,
    ) -> Result<QuotaGuard<'a>, WriteError> {
        let mut guard = QuotaGuard { layout, path, usage, queue };
        if guard.usage.accuracy() == Accuracy::Unknown {
            guard.walk(None)?;
        }
        Ok(guard)
    }

    /// Fails if `needed` bytes can never be within the limit.
    pub(crate) fn check_limit(&self, needed: u64) -> Result<(), WriteError> {
        match self.usage.limit() {
            Some(limit) if needed > limit => Err(WriteError::Full { needed, limit, in_use: 0 }),
            _ => Ok(()),
        }
    }

    /// Takes `bytes` bytes of the quota, and evicts as long as it has too few.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), WriteError> {
        self.check_limit(bytes)?;
        let mut search = Search::default();
        while let Some(limit) = self.usage.limit()
            && self.usage.used().saturating_add(bytes) > limit
        {
            if !self.evict(&mut search)? {
                return Err(WriteError::Full { needed: bytes, limit, in_use: self.usage.used() });
            }
        }
        self.usage.add(bytes).map_err(account::failed(self.path))
    }

    /// Evicts one file, or finds by a recount that space may have become free. Returns `false` if
    /// no file is left that can be evicted.
    pub(crate) fn evict(&mut self, search: &mut Search) -> Result<bool, WriteError> {
        if self.usage.accuracy() != Accuracy::Exact {
            self.queue.0.clear();
        }
        loop {
            while let Some(candidate) = self.queue.0.pop_front() {
                search.passed = Some(candidate);
                if let Some(bytes) = self.remove_unused(candidate).map_err(account::failed(self.path))? {
                    match candidate.what {
                        What::Blob(_) => search.removed += 1,
                        What::Segment(_) => search.segments += 1,
                    }
                    search.freed += bytes;
                    return Ok(true);
                }
            }
            match search.walks {
                None => {
                    search.passed = None;
                    let blobs = self.tidy()?;
                    search.walks = Some(blobs / QUEUE_LENGTH as u64 + 1);
                    return Ok(true);
                }
                Some(0) => return self.remove_index(search),
                Some(walks) => search.walks = Some(walks - 1),
            }
            self.walk(search.passed)?;
            if self.queue.0.is_empty() {
                return self.remove_index(search);
            }
        }
    }

    /// Removes what dead processes left, and recounts. Returns the number of blobs and segments.
    pub(crate) fn tidy(&mut self) -> Result<u64, WriteError> {
        remove_leftovers(self.layout);
        self.walk(None)
    }

    /// Removes a file, even if another process has it open. Returns its bytes on the disk.
    pub(crate) fn remove(&mut self, path: &Path) -> io::Result<u64> {
        let bytes = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata.blocks().saturating_mul(512),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        // The file first: if the process dies in between, the number is too high, not too low.
        match files::remove(path) {
            Ok(()) => self.usage.sub(bytes)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        }
        Ok(bytes)
    }

    /// Removes the index of the segments if it occupies any space. It is created again when it is
    /// needed.
    fn remove_index(&mut self, search: &mut Search) -> Result<bool, WriteError> {
        if !self.layout.has_segments() {
            return Ok(false);
        }
        let path = self.layout.segments_dir().join(SEGMENT_INDEX);
        let file = open(&path).map_err(account::failed(self.path))?;
        let is_file = |file: &File| file.metadata().is_ok_and(|metadata| metadata.is_file());
        let removed = match file.filter(is_file) {
            Some(file) => match Owned::try_new(&file).map_err(account::failed(self.path))? {
                Some(_owned) => self.remove(&path).map_err(account::failed(self.path))?,
                None => 0,
            },
            None => 0,
        };
        search.freed += removed;
        Ok(removed > 0)
    }

    /// Removes a file that is neither in use nor pinned, and was not used since it was remembered.
    /// Returns its bytes.
    fn remove_unused(&mut self, candidate: Candidate) -> io::Result<Option<u64>> {
        let path = candidate.what.path(self.layout);
        let Some(file) = open(&path)? else { return Ok(None) };
        let Some(_owned) = Owned::try_new(&file)? else { return Ok(None) };
        if Candidate::new(candidate.what, &file.metadata()?) != candidate || pin::is_pinned(&file)? {
            return Ok(None);
        }
        let bytes = self.remove(&path)?;
        tracing::debug!(what = ?candidate.what, bytes, "evicted a file");
        Ok(Some(bytes))
    }

    /// Recounts the bytes of all files, and remembers the least recently used ones after `passed`.
    /// Returns the number of blobs and segments.
    fn walk(&mut self, passed: Option<Candidate>) -> Result<u64, WriteError> {
        let mut oldest = BTreeSet::new();
        let mut blobs = 0;
        let bytes = count(self.layout, |what, metadata| {
            blobs += 1;
            let candidate = Candidate::new(what, metadata);
            if Some(candidate) > passed {
                oldest.insert(candidate);
            }
            if oldest.len() > QUEUE_LENGTH {
                oldest.pop_last();
            }
        })
        .map_err(WriteError::io("count the files of", self.layout.root()))?;
        self.queue.0 = oldest.into_iter().collect();
        self.usage.recounted(bytes).map_err(account::failed(self.path))?;
        Ok(blobs)
    }
}

impl Candidate {
    fn new(what: What, metadata: &Metadata) -> Candidate {
        Candidate { used: (metadata.atime(), metadata.atime_nsec()), what, inode: metadata.ino() }
    }
}

/// Opens an existing file, but follows no link; a pipe does not block.
fn open(path: &Path) -> io::Result<Option<File>> {
    let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(careful.bits().cast_signed()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the bytes that the unfinished files of a cache occupy.
pub(crate) fn unfinished(layout: &Layout) -> io::Result<u64> {
    let mut bytes = 0_u64;
    each_file(layout.tmp(), &mut |dir, _, metadata| {
        if dir != layout.tmp() {
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
        }
    })?;
    Ok(bytes)
}

/// Returns the bytes that all files of a cache occupy. Calls `found` with each blob and each
/// segment.
///
/// It begins with `tmp/`: a file that becomes a blob meanwhile is then counted twice instead of not
/// at all.
fn count(layout: &Layout, mut found: impl FnMut(What, &Metadata)) -> io::Result<u64> {
    let mut bytes = 0_u64;
    let mut add = |more: u64| bytes = bytes.saturating_add(more);
    add(fs::metadata(layout.marker())?.blocks().saturating_mul(512));
    each_file(layout.tmp(), &mut |dir, entry, metadata| {
        let on_disk = metadata.blocks().saturating_mul(512);
        // A file that is being filled may need more than it has.
        let unfinished = dir != layout.tmp() && on_disk > 0;
        add(match entry.file_name().to_str().is_some_and(|name| name.starts_with(PLACEHOLDER)) {
            true => metadata.len(),
            false if unfinished => on_disk.saturating_add(slack(metadata.len().max(on_disk))),
            false => on_disk,
        });
    })?;
    if layout.has_segments() {
        each_file(layout.segments_dir(), &mut |dir, entry, metadata| {
            add(metadata.blocks().saturating_mul(512));
            if dir == layout.segments_dir()
                && let Some(number) = entry.file_name().to_str().and_then(segment_number)
            {
                found(What::Segment(number), metadata);
            }
        })?;
    }
    for bucket in 0..BlobId::BUCKETS {
        each_file(&layout.bucket_path(bucket), &mut |_, entry, metadata| {
            add(metadata.blocks().saturating_mul(512));
            let name = entry.file_name();
            if let Some(blob) = name.to_str().and_then(|name| BlobId::from_file_name(bucket, name)) {
                found(What::Blob(blob), metadata);
            }
        })?;
    }
    Ok(bytes)
}

/// Calls `found` with each file in a directory and below. Skips files that vanish meanwhile.
fn each_file(dir: &Path, found: &mut impl FnMut(&Path, &DirEntry, &Metadata)) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => each_file(&entry.path(), found)?,
            Ok(metadata) if metadata.is_file() => found(dir, &entry, &metadata),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes the files of dead processes, and the partial downloads that no process continues.
fn remove_leftovers(layout: &Layout) {
    if let Err(error) = scratch::try_sweep(layout.tmp()) {
        tracing::warn!(%error, "cannot remove the unfinished files of dead processes");
    }
    remove_partials(layout, |_| true);
}

/// Removes the partial downloads for which `unwanted` returns `true` and which no process
/// continues. Returns their number.
pub(crate) fn remove_partials(layout: &Layout, unwanted: impl Fn(BlobId) -> bool) -> u64 {
    let mut removed = 0;
    for (blob, path) in layout.partials().unwrap_or_default() {
        // A downloading process holds the lock of the bucket.
        if unwanted(blob)
            && let Ok(Some(_lock)) = FileLock::try_existing(&layout.lock_path(blob.bucket()))
            && fs::remove_file(&path).is_ok()
        {
            tracing::info!(%blob, "removed a partial download");
            removed += 1;
        }
    }
    removed
}
