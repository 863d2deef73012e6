//! The index: hints which segment may have a blob, in one file for all processes.
//!
//! The file is a sparse table of small buckets, whose size is fixed when it is created. A blob's
//! hash selects the bucket; a slot in it has a part of the hash, and a location in a segment. A
//! lookup reads one bucket, and keeps nothing in memory.
//!
//! A slot is only a hint; the record that it points to is verified. Whatever the file has, torn,
//! old or foreign bytes, the worst consequence is one more download. A process locks the file to
//! change a bucket, so that no hint is lost by a race. A full bucket forgets one hint.

use blobferry_platform::os::allocate::allocate;
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use blobferry_protocol::BlobId;

use crate::lock::Owned;
use crate::quota::reservation::CacheQuota;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::os::allocate::slack;
use blobferry_platform::os::files;
use blobferry_platform::sync::atomic::{AtomicBool, Ordering};
use blobferry_platform::sync::{Mutex, MutexGuard};

const SLOT: usize = 16;
const SLOTS: usize = 16;
const BUCKET: usize = SLOT * SLOTS;
/// The block size of the file system in bytes, or a multiple of it.
const PAGE: u64 = 4096;
/// The table is allocated in regions of this number of bytes; page by page if the file system
/// cannot do that.
const REGION: u64 = 256 * PAGE;
/// The length of the table in bytes if the cache has no limit: space for two million hints.
const LONGEST: u64 = 32 << 20;
const SHORTEST: u64 = 16 << 10;

/// A location where a blob's record may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    /// The length of the record in bytes.
    pub(crate) len: u32,
}

/// The open table.
#[derive(Debug)]
pub(crate) struct Index {
    file: File,
    path: PathBuf,
    buckets: u64,
    /// The pages that are known to be on the disk, and so in the quota.
    counted: Mutex<Pages>,
    /// The table cannot be allocated in advance.
    page_by_page: AtomicBool,
}

impl Index {
    /// Uses an existing table. Returns `None` if another process is just creating it.
    pub(crate) fn new(file: File, metadata: &Metadata, path: PathBuf) -> Option<Index> {
        let buckets = metadata.len() / BUCKET as u64;
        (buckets > 0 && metadata.len() <= LONGEST).then(|| Index {
            file,
            path,
            buckets,
            counted: Mutex::default(),
            page_by_page: AtomicBool::new(false),
        })
    }

    /// Gives a table without a length the length that fits the cache's limit.
    pub(crate) fn make(file: &File, limit: Option<u64>) -> io::Result<()> {
        let _owned = Owned::wait(file)?;
        let len = file.metadata()?.len();
        if len < BUCKET as u64 || len > LONGEST {
            // The contents are no table. Truncated, the file is sparse again.
            file.set_len(0)?;
            let right = limit.map_or(LONGEST, |limit| (limit / 64).next_power_of_two());
            file.set_len(right.clamp(SHORTEST, LONGEST))?;
        }
        Ok(())
    }

    /// Returns whether this is still the table that all processes use: it is not removed, and its
    /// length is unchanged.
    pub(crate) fn is_current(&self) -> bool {
        let is_it =
            |metadata: Metadata| metadata.nlink() > 0 && metadata.len() / BUCKET as u64 == self.buckets;
        self.file.metadata().is_ok_and(is_it)
    }

    /// Returns the hints for a blob.
    pub(crate) fn lookup(&self, blob: BlobId) -> impl Iterator<Item = Location> + use<> {
        let (at, tag) = self.place(blob);
        let bucket = self.read(at).unwrap_or([0; BUCKET]);
        (0..SLOTS)
            .filter_map(move |slot| hint(&bucket, slot).filter(|(found, _)| *found == tag))
            .map(|(_, hint)| hint)
    }

    /// Inserts hints. Returns `false` if the table was removed meanwhile.
    pub(crate) fn insert(
        &self,
        quota: &CacheQuota,
        hints: &[(BlobId, Location)],
    ) -> Result<bool, WriteError> {
        let _owned = Owned::wait(&self.file).map_err(self.failed())?;
        if !self.is_current() {
            return Ok(false);
        }
        self.write_all(quota, hints)?;
        Ok(true)
    }

    /// Removes a hint.
    pub(crate) fn remove(&self, blob: BlobId, hint: Location) -> Result<(), WriteError> {
        let _owned = Owned::wait(&self.file).map_err(self.failed())?;
        let (at, tag) = self.place(blob);
        let bucket = self.read(at).map_err(self.failed())?;
        match (0..SLOTS).find(|slot| self::hint(&bucket, *slot) == Some((tag, hint))) {
            Some(slot) => {
                let forgotten = files::write_at(&self.file, &[0; SLOT], at + (slot * SLOT) as u64);
                forgotten.map_err(self.failed())
            }
            None => Ok(()),
        }
    }

    /// Returns the offset of a blob's bucket, and the first number of its slot.
    fn place(&self, blob: BlobId) -> (u64, u32) {
        let hash = mix(mix(blob.oid.0) ^ blob.tid.0);
        ((hash % self.buckets) * BUCKET as u64, (hash >> 32) as u32)
    }

    fn read(&self, at: u64) -> io::Result<[u8; BUCKET]> {
        let mut bucket = [0; BUCKET];
        self.file.read_exact_at(&mut bucket, at)?;
        Ok(bucket)
    }

    /// Writes hints. The first hint of a page takes its space from the quota.
    fn write_all(&self, quota: &CacheQuota, hints: &[(BlobId, Location)]) -> Result<(), WriteError> {
        for page in self.new_pages(hints) {
            self.take_region(quota, page)?;
        }
        let new = self.new_pages(hints);
        let write = || hints.iter().try_for_each(|(blob, hint)| self.write(*blob, *hint));
        if new.is_empty() {
            return write().map_err(self.failed());
        }
        // The file system may need another page to record where this one is.
        let more = 2 * PAGE * new.len() as u64;
        quota.grow(&self.file, more, write)?.map_err(self.failed())?;
        let mut counted = self.counted();
        new.into_iter().for_each(|page| counted.add(page..page + 1));
        Ok(())
    }

    /// Takes space for all pages of a page's region at once, if the quota has it.
    fn take_region(&self, quota: &CacheQuota, page: u64) -> Result<(), WriteError> {
        if self.page_by_page.load(Ordering::Relaxed) || self.counted().has(page) {
            return Ok(());
        }
        let begin = page * PAGE / REGION * REGION;
        let size = REGION.min((self.buckets * BUCKET as u64).saturating_sub(begin));
        let allocate = || Ok(allocate(&self.file, begin, size, None)?);
        match quota.grow(&self.file, size + slack(size), allocate) {
            Ok(Ok(true)) => self.counted().add(begin / PAGE..(begin + size).div_ceil(PAGE)),
            // The quota may still have space for a page.
            Ok(_) | Err(WriteError::Full { .. } | WriteError::NoSpace { .. }) => {
                self.page_by_page.store(true, Ordering::Relaxed);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Returns the pages that the hints belong to and that may not be on the disk yet.
    fn new_pages(&self, hints: &[(BlobId, Location)]) -> BTreeSet<u64> {
        let counted = self.counted();
        let pages = hints.iter().map(|(blob, _)| self.place(*blob).0 / PAGE);
        pages.filter(|page| !counted.has(*page)).collect()
    }

    /// Writes a hint to a slot of its bucket.
    fn write(&self, blob: BlobId, hint: Location) -> io::Result<()> {
        let (at, tag) = self.place(blob);
        let slot = slot_for(&self.read(at)?, tag, hint);
        files::write_at(&self.file, &slot_of(tag, hint), at + (slot * SLOT) as u64)
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> WriteError {
        WriteError::space("write to", &self.path, SLOT as u64)
    }

    fn counted(&self) -> MutexGuard<'_, Pages> {
        self.counted.lock()
    }
}

/// A set of pages: one bit for each.
#[derive(Debug, Default)]
struct Pages(Vec<u64>);

impl Pages {
    fn has(&self, page: u64) -> bool {
        self.0.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    fn add(&mut self, pages: Range<u64>) {
        self.0.resize(self.0.len().max(pages.end.div_ceil(64) as usize), 0);
        for page in pages {
            if let Some(word) = self.0.get_mut((page / 64) as usize) {
                *word |= 1 << (page % 64);
            }
        }
    }
}

/// Mixes the bits of a number, so that each depends on all (the end of splitmix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Returns the hint in a slot; `None` if it is empty.
fn hint(bucket: &[u8; BUCKET], slot: usize) -> Option<(u32, Location)> {
    let slot = bucket.get(slot * SLOT..)?;
    let number = |at: usize| Some(u32::from_le_bytes(*slot.get(at..)?.first_chunk()?));
    let hint = Location { segment: number(4)?, offset: number(8)?, len: number(12)? };
    (hint.len > 0).then_some((number(0)?, hint))
}

fn slot_of(tag: u32, hint: Location) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    for (to, number) in slot.chunks_exact_mut(4).zip([tag, hint.segment, hint.offset, hint.len]) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    slot
}

/// Returns the slot for a hint: one with the same hash, an empty one, or one whose hint is
/// forgotten.
fn slot_for(bucket: &[u8; BUCKET], tag: u32, new: Location) -> usize {
    let slots = || (0..SLOTS).map(|slot| (slot, hint(bucket, slot)));
    let same = slots().find(|(_, found)| found.is_some_and(|(found, _)| found == tag));
    let free = || slots().find(|(_, found)| found.is_none());
    // This is as good as a random choice.
    same.or_else(free).map_or(mix(u64::from(new.offset)) as usize % SLOTS, |(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::scratch::Scratch;
    use blobferry_platform::blobdir::layout::Layout;
    use blobferry_protocol::{Oid, Tid};

    fn blob(n: u64) -> BlobId {
        BlobId { oid: Oid(n), tid: Tid(1) }
    }

    fn hint(n: u32) -> Location {
        Location { segment: n, offset: n, len: n + 1 }
    }

    fn index(limit: Option<u64>, test: impl FnOnce(&CacheQuota, Index)) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (scratch, _) = Scratch::create(layout.tmp()).unwrap();
        let quota = CacheQuota::new(&layout, scratch.path(), None);
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        assert!(Index::new(file.try_clone().unwrap(), &file.metadata().unwrap(), PathBuf::new()).is_none());
        Index::make(&file, limit).unwrap();
        let metadata = file.metadata().unwrap();
        // It has no name here.
        let index = Index::new(file, &metadata, PathBuf::new()).unwrap();
        test(&quota, index);
    }

    fn insert(index: &Index, quota: &CacheQuota, n: u64, hint: Location) {
        index.write_all(quota, &[(blob(n), hint)]).unwrap();
    }

    #[test]
    fn a_hint_is_found_replaced_and_removed() {
        index(None, |quota, index| {
            assert_eq!(index.lookup(blob(1)).count(), 0);
            for n in 1..=1000 {
                insert(&index, quota, n, hint(n as u32));
            }
            for n in 1..=1000 {
                assert!(index.lookup(blob(n)).eq([hint(n as u32)]), "{n}");
            }
            insert(&index, quota, 7, hint(8000));
            assert!(index.lookup(blob(7)).eq([hint(8000)]));
            index.remove(blob(7), hint(7)).unwrap();
            assert!(index.lookup(blob(7)).eq([hint(8000)]), "that one was another");
            index.remove(blob(7), hint(8000)).unwrap();
            assert_eq!(index.lookup(blob(7)).count(), 0);
            assert!(
                !index.insert(quota, &[(blob(7), hint(7))]).unwrap(),
                "a table that was removed takes nothing"
            );
        });
    }

    #[test]
    fn a_full_table_forgets_only_what_it_must() {
        index(Some(1), |quota, index| {
            let slots = SHORTEST / SLOT as u64;
            for n in 0..2 * slots {
                insert(&index, quota, n, hint(n as u32));
            }
            assert!(
                index.lookup(blob(2 * slots - 1)).eq([hint(2 * slots as u32 - 1)]),
                "the last one is there"
            );
            let found =
                (0..2 * slots).filter(|n| index.lookup(blob(*n)).any(|found| found == hint(*n as u32)));
            assert!(found.count() as u64 > slots * 9 / 10);
        });
    }

    #[test]
    fn the_space_of_the_table_is_in_the_quota() {
        for page_by_page in [false, true] {
            check_space_is_counted(page_by_page);
        }
    }

    fn check_space_is_counted(page_by_page: bool) {
        index(None, |quota, index| {
            index.page_by_page.store(page_by_page, Ordering::Relaxed);
            let used = || quota.lock().unwrap().usage.used();
            let before = used();
            for n in 0..500 {
                insert(&index, quota, n, hint(n as u32));
            }
            let taken = blobferry_platform::os::allocate::on_disk(&index.file).unwrap();
            let at_once = !index.page_by_page.load(Ordering::Relaxed);
            assert!(taken >= if at_once { LONGEST } else { PAGE }, "{taken}");
            assert_eq!(used() - before, taken);
        });
    }
}
