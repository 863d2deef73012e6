//! Segments: files of many small blobs each.
//!
//! A file of its own for each small blob would cost more than to download the blob again. So small
//! blobs that are loaded into memory are appended to a segment in the background, and an index
//! records their locations for all processes. Several processes write at once, each to another
//! segment: an embedded database with one writer at a time would make them wait for each other.
//!
//! Nothing here is synced, and nothing is trusted: a hint of the `index` leads to a `record`, which
//! is verified. A segment is evicted as a whole, the least recently read one first.
//!
//! `pending` has the blobs that wait to be written, `writer` writes them, `file` opens the files.

pub(crate) mod file;
pub(crate) mod index;
mod pending;
pub(crate) mod record;
mod writer;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use blobferry_protocol::{BlobId, Digest};
use bytes::Bytes;

use self::file::How;
use self::index::{Index, Location};
pub(crate) use self::pending::Pending;
use self::record::{HEAD, Head};
use self::writer::Writer;
use crate::cached_blob::touch;
use crate::quota::reservation::CacheQuota;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::blobdir::layout::{Layout, SEGMENT_INDEX, create_dir, segment_name};
use blobferry_platform::os;
use blobferry_platform::sync::{Arc, Mutex};

/// The size in bytes of the largest blob that is small.
pub(crate) const SMALL: u64 = 64 << 10;

/// The length in bytes of the longest record.
pub(crate) const LARGEST: u64 = SMALL + HEAD as u64;

/// How often this process checks whether its open index is still the one that all processes use.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The segments of a cache, as this process has them open.
#[derive(Debug)]
pub(crate) struct Segments {
    layout: Layout,
    current: Mutex<Option<(Arc<OpenSegments>, Instant)>>,
    writer: Mutex<Writer>,
    pub(crate) pending: Pending,
}

/// The open directory and index.
#[derive(Debug)]
struct OpenSegments {
    dir: File,
    index: Index,
}

impl Segments {
    pub(crate) fn new(layout: &Layout) -> Segments {
        let layout = layout.clone();
        Segments { layout, current: Mutex::default(), writer: Mutex::default(), pending: Pending::default() }
    }

    /// Returns the path of a segment.
    pub(crate) fn path(&self, number: u32) -> PathBuf {
        self.layout.segment_path(number)
    }

    /// Returns the numbers of the existing segments.
    pub(crate) fn numbers(&self) -> io::Result<Vec<u32>> {
        writer::numbers(&self.layout)
    }

    /// Opens a segment for reading.
    pub(crate) fn open_segment(&self, number: u32) -> Option<File> {
        let open = self.opened()?;
        Some(file::open(&open.dir, &segment_name(number), How::Read).ok()??.0)
    }

    /// Returns whether the index has a hint for a blob.
    pub(crate) fn may_have(&self, blob: BlobId) -> bool {
        self.opened().is_some_and(|open| open.index.lookup(blob).next().is_some())
    }

    /// Returns whether a lookup of the blob would read this record.
    pub(crate) fn reads_from(&self, blob: BlobId, segment: u32, offset: u64) -> bool {
        let leads_there = |hint: Location| hint.segment == segment && u64::from(hint.offset) == offset;
        self.opened().is_some_and(|open| open.index.lookup(blob).any(leads_there))
    }

    /// Returns a blob's verified bytes and their digest. Returns `None` if no segment has them.
    pub(crate) fn read(&self, blob: BlobId) -> Option<(Bytes, Digest)> {
        let open = self.opened()?;
        open.index.lookup(blob).find_map(|hint| read(&open.dir, blob, hint).ok().flatten())
    }

    /// Removes the hint for a blob whose record is damaged.
    pub(crate) fn forget(&self, blob: BlobId, segment: u32, offset: u64) -> Result<(), WriteError> {
        let Some(open) = self.opened() else { return Ok(()) };
        // All threads of this process share the lock on the index, so this mutex excludes them.
        let _alone = self.writer.lock();
        let there = |hint: &Location| hint.segment == segment && u64::from(hint.offset) == offset;
        let hints: Vec<Location> = open.index.lookup(blob).filter(there).collect();
        hints.into_iter().try_for_each(|hint| open.index.remove(blob, hint))
    }

    /// Writes blobs to a segment, and inserts their locations into the index.
    pub(crate) fn append(&self, quota: &CacheQuota, records: &[(Head, Bytes)]) -> Result<(), WriteError> {
        let mut writer = self.writer.lock();
        for _ in 0..3 {
            let open = match self.opened() {
                Some(open) => open,
                None => self.make(quota)?,
            };
            let hints = writer.append(&self.layout, &open.dir, quota, records)?;
            if open.index.insert(quota, &hints)? {
                return Ok(());
            }
            // Another process has evicted the index.
            self.close();
        }
        Err(WriteError::io("write to", self.layout.segments_dir())(io::Error::other(
            "it is removed again and again",
        )))
    }

    /// Returns the open directory and index, if they are usable.
    fn opened(&self) -> Option<Arc<OpenSegments>> {
        let mut current = self.current.lock();
        let now = os::now();
        if let Some((open, checked)) = &mut *current {
            if now.saturating_duration_since(*checked) < RECHECK_INTERVAL {
                return Some(open.clone());
            }
            if open.index.is_current() {
                *checked = now;
                return Some(open.clone());
            }
        }
        let open = self.try_open().inspect_err(|error| self.log_unusable(error)).ok().flatten().map(Arc::new);
        *current = open.clone().map(|open| (open, now));
        open
    }

    fn try_open(&self) -> io::Result<Option<OpenSegments>> {
        let Some(dir) = file::open_dir(self.layout.segments_dir())? else { return Ok(None) };
        // Opened for writing as well: one open file serves both.
        let Some((index, metadata)) = file::open(&dir, SEGMENT_INDEX, How::Update)? else { return Ok(None) };
        let path = self.layout.segments_dir().join(SEGMENT_INDEX);
        Ok(Index::new(index, &metadata, path).map(|index| OpenSegments { dir, index }))
    }

    fn log_unusable(&self, error: &io::Error) {
        tracing::debug!(dir = %self.layout.segments_dir().display(), %error, "cannot read small blobs from segments");
    }

    fn close(&self) {
        *self.current.lock() = None;
    }

    /// Creates the directory and the index, if they are missing or not usable.
    fn make(&self, quota: &CacheQuota) -> Result<Arc<OpenSegments>, WriteError> {
        let limit = quota.limit()?;
        let make = || -> io::Result<()> {
            create_dir(self.layout.segments_dir(), 0o700)?;
            let dir = file::open_dir(self.layout.segments_dir())?.ok_or(ErrorKind::NotFound)?;
            for _ in 0..2 {
                if let Some((index, _)) = file::open(&dir, SEGMENT_INDEX, How::Make)? {
                    return Index::make(&index, limit);
                }
                // It is not a regular file of this user.
                file::remove(&dir, SEGMENT_INDEX)?;
            }
            Err(io::Error::other("something is in the place of the index"))
        };
        make().map_err(WriteError::space("make an index in", self.layout.segments_dir(), 0))?;
        self.opened()
            .ok_or(ErrorKind::NotFound.into())
            .map_err(WriteError::io("use", self.layout.segments_dir()))
    }
}

/// Reads a record, if it is this blob's.
fn read(dir: &File, blob: BlobId, hint: Location) -> io::Result<Option<(Bytes, Digest)>> {
    if !(HEAD as u64..=LARGEST).contains(&hint.len.into()) {
        return Ok(None);
    }
    let Some((segment, metadata)) = file::open(dir, &segment_name(hint.segment), How::Read)? else {
        return Ok(None);
    };
    let mut record = vec![0; hint.len as usize];
    segment.read_exact_at(&mut record, hint.offset.into())?;
    let opened = record::open(blob, record);
    if opened.is_some() {
        touch(&segment, &metadata);
    }
    Ok(opened)
}
