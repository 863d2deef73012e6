//! Writing to packs: many records at once, at the end of a file that one process writes to at a time.
//!
//! Who writes has the lock on the pack, for as long as that takes; in between anybody may write to it, or remove it to make
//! quota. So nothing has to be taken over from who has died: the next writer looks for a pack that has quota, whoever has
//! begun it.
//!
//! The account is raised before a pack grows, in steps, and what it has is always what the pack takes on the disk.

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

/// No pack is longer; where the cache has a limit, it is shorter.
const LONGEST: u64 = 32 << 20;
const SHORTEST: u64 = 128 << 10;
/// Of so many packs a cache has quota for at least.
const MIN_SEGMENTS: u64 = 16;
/// How a pack grows.
const STEP: u64 = 1 << 20;

/// Where this process writes.
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
    /// It may be so long.
    most: u64,
}

/// What became of an attempt to write to a pack.
enum Written {
    /// From this offset on.
    At(u64),
    /// Somebody else writes there, or has removed it, or it is full.
    Elsewhere,
}

impl Writer {
    /// Writes records; where they are.
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

    /// Writes bytes to a pack that has quota for them: which one, and where.
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
        if end > self.most {
            // Nothing more comes: what is reserved behind its end is given back.
            quota.change(&self.file, 0, || self.file.set_len(begin))?.map_err(failed)?;
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
                quota.change(&self.file, more, || files::write(&self.file, bytes))?.map_err(failed)?;
            }
            Err(WriteError::NoSpace { .. }) if quota.evict_one()? => return Ok(Written::Elsewhere),
            // Everything else that can be removed is removed: only this one is left.
            Err(WriteError::Full { .. } | WriteError::NoSpace { .. }) if begin > 0 => {
                quota.remove(&path)?;
                return Ok(Written::Elsewhere);
            }
            Err(error) => return Err(error),
        }
        touch(&self.file, &metadata);
        Ok(Written::At(begin))
    }

    /// Reserves quota up to `end`, and some more. `false` where the file system can not do that.
    fn reserve(&self, quota: &CacheQuota, begin: u64, on_disk: u64, end: u64) -> Result<bool, WriteError> {
        let ample = end.max((begin + STEP).min(self.most));
        let up_to = |size: u64| {
            let more = quota.cost(size.saturating_sub(on_disk));
            quota.change(&self.file, more, || Ok(allocate(&self.file, 0, size, None)?))?
                .map_err(WriteError::space("reserve quota in", quota.layout().tmp(), size - begin))
        };
        match up_to(ample) {
            Err(WriteError::Full { .. } | WriteError::NoSpace { .. }) => up_to(end),
            done => done,
        }
    }
}

/// A pack that has quota for so many bytes, or a new one.
fn find(layout: &Layout, dir: &File, quota: &CacheQuota, bytes: u64) -> Result<Active, WriteError> {
    let failed = || WriteError::io("look for a pack in", layout.segments_dir());
    let limit = quota.limit()?;
    let most = limit.map_or(LONGEST, |limit| (limit / MIN_SEGMENTS).clamp(SHORTEST, LONGEST)).max(bytes);
    for number in numbers(layout).map_err(failed())? {
        let Some((file, metadata)) =
            file::open(dir, &segment_name(number), How::Append).ok().flatten()
        else {
            continue;
        };
        let fits = metadata.len().saturating_add(bytes) <= most;
        if fits && Owned::try_new(&file).map_err(failed())?.is_some() {
            return Ok(Active { number, file, most });
        }
    }
    loop {
        let mut number = [0; 4];
        os::random(&mut number).map_err(|error| failed()(io::Error::other(error.to_string())))?;
        let number = u32::from_le_bytes(number);
        match file::open(dir, &segment_name(number), How::New) {
            Ok(Some((file, _))) => return Ok(Active { number, file, most }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Ok(None) => return Err(failed()(io::Error::other("a file that was just made is not fit"))),
            Err(error) => return Err(failed()(error)),
        }
    }
}

/// The packs that there are.
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
