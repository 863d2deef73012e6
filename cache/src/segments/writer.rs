//! Writing to segments: many records at once, at the end of a file that one process writes at a
//! time.
//!
//! A process holds the lock on the segment while it writes. In between, any process may write to
//! the segment, or evict it. So nothing must be taken over from a dead process: the next writer
//! searches for a segment with enough space, whichever process created it.
//!
//! The quota is raised before a segment grows, in steps, and always has what the segment occupies
//! on the disk.

use blobferry_platform::blobdir::layout::{Layout, segment_name, segment_number};
use blobferry_platform::os::allocate::allocate;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use blobferry_protocol::BlobId;
use bytes::Bytes;

use crate::cached_blob::touch;
use crate::lock::Owned;
use crate::quota::reservation::CacheQuota;
use crate::segments::file;
use crate::segments::file::How;
use crate::segments::index::Location;
use crate::segments::record::Head;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::os;
use blobferry_platform::os::files;

/// The maximum length of a segment in bytes. If the cache has a limit, it is shorter, down to
/// [`SHORTEST`].
const LONGEST: u64 = 32 << 20;
const SHORTEST: u64 = 128 << 10;
/// A cache with a limit has space for at least this number of segments.
const MIN_SEGMENTS: u64 = 16;
/// The number of bytes by which a segment grows.
const STEP: u64 = 1 << 20;

/// The segment that this process writes to.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    active: Option<Active>,
    /// Kept from one batch to the next.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Active {
    number: u32,
    file: File,
    /// The maximum length in bytes.
    max_len: u64,
}

/// The result of an attempt to write to a segment.
enum Written {
    /// The bytes are written from this offset on.
    At(u64),
    /// The segment is locked by another process, evicted, or full.
    Elsewhere,
}

impl Writer {
    /// Writes records. Returns their locations.
    pub(crate) fn append(
        &mut self,
        layout: &Layout,
        dir: &File,
        quota: &CacheQuota,
        records: &[(Head, Bytes)],
    ) -> Result<Vec<(BlobId, Location)>, WriteError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut places = Vec::with_capacity(records.len());
        for (head, body) in records {
            places.push((head.blob, bytes.len() as u64, head.record_len()));
            head.write(&mut bytes);
            bytes.extend_from_slice(body);
        }
        let written = self.write(layout, dir, quota, &bytes);
        self.bytes = bytes;
        let (segment, begin) = written?;
        let hint = |offset: u64, len: u64| {
            Some(Location {
                segment,
                offset: u32::try_from(begin + offset).ok()?,
                len: u32::try_from(len).ok()?,
            })
        };
        let hints = places.into_iter().filter_map(|(blob, at, len)| Some((blob, hint(at, len)?)));
        Ok(hints.collect())
    }

    /// Writes bytes to a segment with enough space. Returns its number and the offset.
    fn write(
        &mut self,
        layout: &Layout,
        dir: &File,
        quota: &CacheQuota,
        bytes: &[u8],
    ) -> Result<(u32, u64), WriteError> {
        loop {
            let active = match self.active.take() {
                Some(active) => active,
                None => find(layout, dir, quota, bytes.len() as u64)?,
            };
            if let Written::At(begin) = active.write(layout, quota, bytes)? {
                let number = active.number;
                self.active = Some(active);
                return Ok((number, begin));
            }
        }
    }
}

impl Active {
    fn write(&self, layout: &Layout, quota: &CacheQuota, bytes: &[u8]) -> Result<Written, WriteError> {
        let path = layout.segment_path(self.number);
        let failed = |error| WriteError::space("write to", &path, bytes.len() as u64)(error);
        let Some(_owned) = Owned::try_new(&self.file).map_err(failed)? else { return Ok(Written::Elsewhere) };
        let metadata = self.file.metadata().map_err(failed)?;
        let (begin, end) = (metadata.len(), metadata.len() + bytes.len() as u64);
        if metadata.nlink() == 0 {
            return Ok(Written::Elsewhere);
        }
        if end > self.max_len {
            // The segment is full: return the space reserved behind its end.
            quota.grow(&self.file, 0, || self.file.set_len(begin))?.map_err(failed)?;
            return Ok(Written::Elsewhere);
        }
        let on_disk = metadata.blocks().saturating_mul(512);
        let reserved = match on_disk < end {
            true => self.reserve(quota, begin, on_disk, end),
            false => Ok(true),
        };
        match reserved {
            Ok(true) => files::write(&self.file, bytes).map_err(failed)?,
            Ok(false) => {
                let more = quota.cost(bytes.len() as u64);
                quota.grow(&self.file, more, || files::write(&self.file, bytes))?.map_err(failed)?;
            }
            Err(WriteError::NoSpace { .. }) if quota.evict_one()? => return Ok(Written::Elsewhere),
            // Everything else that can be evicted is gone: only this segment is left.
            Err(WriteError::Full { .. } | WriteError::NoSpace { .. }) if begin > 0 => {
                quota.remove(&path)?;
                return Ok(Written::Elsewhere);
            }
            Err(error) => return Err(error),
        }
        touch(&self.file, &metadata);
        Ok(Written::At(begin))
    }

    /// Reserves space up to `end` and some more. Returns `false` if the file system cannot do that.
    fn reserve(&self, quota: &CacheQuota, begin: u64, on_disk: u64, end: u64) -> Result<bool, WriteError> {
        let ample = end.max((begin + STEP).min(self.max_len));
        let up_to = |size: u64| {
            let more = quota.cost(size.saturating_sub(on_disk));
            quota
                .grow(&self.file, more, || Ok(allocate(&self.file, 0, size, None)?))?
                .map_err(WriteError::space("reserve quota in", quota.layout().tmp(), size - begin))
        };
        match up_to(ample) {
            Err(WriteError::Full { .. } | WriteError::NoSpace { .. }) => up_to(end),
            done => done,
        }
    }
}

/// Finds a segment with space for `bytes` more bytes, or creates one.
fn find(layout: &Layout, dir: &File, quota: &CacheQuota, bytes: u64) -> Result<Active, WriteError> {
    let failed = || WriteError::io("find a segment in", layout.segments_dir());
    let limit = quota.limit()?;
    let most = limit.map_or(LONGEST, |limit| (limit / MIN_SEGMENTS).clamp(SHORTEST, LONGEST)).max(bytes);
    for number in numbers(layout).map_err(failed())? {
        let Some((file, metadata)) = file::open(dir, &segment_name(number), How::Append).ok().flatten()
        else {
            continue;
        };
        let fits = metadata.len().saturating_add(bytes) <= most;
        if fits && Owned::try_new(&file).map_err(failed())?.is_some() {
            return Ok(Active { number, file, max_len: most });
        }
    }
    loop {
        let mut number = [0; 4];
        os::random(&mut number).map_err(|error| failed()(io::Error::other(error.to_string())))?;
        let number = u32::from_le_bytes(number);
        match file::open(dir, &segment_name(number), How::New) {
            Ok(Some((file, _))) => return Ok(Active { number, file, max_len: most }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Ok(None) => return Err(failed()(io::Error::other("a new file is not usable"))),
            Err(error) => return Err(failed()(error)),
        }
    }
}

/// Returns the numbers of the existing segments.
pub(crate) fn numbers(layout: &Layout) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    if !layout.has_segments() {
        return Ok(numbers);
    }
    for entry in fs::read_dir(layout.segments_dir())? {
        numbers.extend(entry?.file_name().to_str().and_then(segment_number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
