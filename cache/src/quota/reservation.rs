//! Reservations: disk space is taken from the quota before a byte is written, for all processes
//! together.
//!
//! What counts is what the file system reports for the files of the cache: blobs, segments, partial
//! downloads, the files of open transactions (but not the directories). A reservation raises the
//! number in the usage file and allocates the file's blocks, under one lock. So the reservation can
//! be seen on the disk, and a recount by another process finds it. If the file system cannot
//! allocate in advance, a placeholder represents the reservation: a file in the process's own
//! directory with the length of the reservation, which occupies no space itself.
//!
//! If there is too little space, files are evicted: see `evict.rs`.
//!
//! A reservation is a little larger than the file, for what the file system needs itself. It is
//! settled when the file is complete. A recount in between has settled it already, or has counted a
//! little too much, which the next recount corrects. The number of bytes is never too low.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blobferry_platform::os::allocate::{allocate, on_disk, slack};
use rustix::io::Errno;
use tempfile::TempPath;

use crate::lock;
use crate::quota::account::{self, UsageFile};
use crate::quota::evict::{Queue, QuotaGuard, Search};
use crate::quota::scratch::PLACEHOLDER;
use blobferry_platform::blobdir::integrity::BootId;
use blobferry_platform::blobdir::layout::Layout;
use blobferry_platform::blobdir::{Reservation, WriteError};
use blobferry_platform::os::files;
use blobferry_platform::sync::{Arc, Mutex};

/// The reservation of a growing file grows by at least, and by at most, this number of bytes.
const GROWTH: (u64, u64) = (1 << 20, 64 << 20);

/// The number of files that are evicted before other threads and processes can lock the usage file.
const EVICTIONS_PER_LOCK: u64 = 64;

/// The quota of one cache. Clones share it.
///
/// * [`CacheQuota::reserve`] begins a reservation for a file that is going to be written. Its
///   variants are for files that have their bytes already.
/// * [`CacheQuota::grow`] is for a file without a reservation: a segment, the index, an attribute.
/// * [`CacheQuota::shrink`] evicts, and [`CacheQuota::remove`] removes one file.
/// * [`CacheQuota::lock`] returns the guard that these use.
#[derive(Clone, Debug)]
pub(crate) struct CacheQuota(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    usage_path: PathBuf,
    /// The directory of placeholders.
    scratch: PathBuf,
    boot: BootId,
    /// The block size of the file system in bytes.
    block: u64,
    queue: Mutex<Queue>,
}

/// Space of the quota for one file. Dropped, it is returned: the file must be removed before.
#[derive(Debug)]
pub(crate) struct QuotaReservation {
    quota: CacheQuota,
    /// The bytes taken from the quota.
    bytes: u64,
    /// The bytes that the file may have.
    size: u64,
    /// The number of recounts when `bytes` was taken.
    recounts: u64,
    placeholder: Option<TempPath>,
}

impl CacheQuota {
    /// Creates the quota of a cache. `scratch` is this process's own directory.
    pub(crate) fn new(layout: &Layout, scratch: &Path, boot: Option<BootId>) -> CacheQuota {
        let block = rustix::fs::statvfs(layout.tmp()).map_or(0, |stat| stat.f_frsize).max(4096);
        CacheQuota(Arc::new(Inner {
            layout: layout.clone(),
            usage_path: layout.tmp().join(".room"),
            scratch: scratch.to_owned(),
            boot: boot.unwrap_or(BootId::ANY),
            block,
            queue: Mutex::default(),
        }))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Locks the usage file, with the right to evict. Counts the files first, if that was not done
    /// since the boot.
    pub(crate) fn lock(&self) -> Result<QuotaGuard<'_>, WriteError> {
        let queue = self.0.queue.lock();
        let usage = UsageFile::open(&self.0.usage_path, self.0.boot).map_err(self.failed())?;
        QuotaGuard::new(&self.0.layout, &self.0.usage_path, usage, queue)
    }

    /// Describes an error of the usage file.
    pub(crate) fn failed(&self) -> impl FnOnce(io::Error) -> WriteError {
        account::failed(&self.0.usage_path)
    }

    /// Returns how many bytes on the disk a file of `size` bytes may occupy.
    pub(crate) fn cost(&self, size: u64) -> u64 {
        let blocks = size.div_ceil(self.0.block).saturating_mul(self.0.block);
        blocks.saturating_add(slack(size))
    }

    /// Removes a file of the cache that no process is filling. Returns its bytes on the disk.
    pub(crate) fn remove(&self, path: &Path) -> Result<u64, WriteError> {
        self.lock()?.remove(path).map_err(WriteError::io("remove", path))
    }

    /// Fails if a file of `size` bytes could not fit even if all other files were evicted. Evicts
    /// and takes nothing.
    pub(crate) fn check(&self, size: u64) -> Result<(), WriteError> {
        let needed = self.cost(size);
        let guard = self.lock()?;
        guard.check_limit(needed)?;
        self.check_disk(&guard, size)
    }

    fn check_disk(&self, guard: &QuotaGuard<'_>, size: u64) -> Result<(), WriteError> {
        match self.free() {
            Some(free) if free.saturating_add(guard.usage.used()) < size => {
                Err(self.no_space(size, Errno::NOSPC))
            }
            _ => Ok(()),
        }
    }

    fn free(&self) -> Option<u64> {
        files::free(self.0.layout.tmp())
    }

    fn no_space(&self, needed: u64, error: Errno) -> WriteError {
        WriteError::space("reserve room in", self.0.layout.tmp(), needed)(error.into())
    }

    /// Begins a reservation for a file of the cache with the bytes that it occupies already. They
    /// may be 0.
    pub(crate) fn reserve(&self, file: &File) -> Result<Box<QuotaReservation>, WriteError> {
        let guard = self.lock()?;
        let bytes = on_disk(file).map_err(self.failed())?;
        let recounts = guard.usage.recounts();
        Ok(Box::new(QuotaReservation { quota: self.clone(), bytes, size: 0, recounts, placeholder: None }))
    }

    /// Takes space for a file that has its length and blocks already, and puts it into the cache
    /// with `place`, under one lock. If `place` returns `None`, nothing is taken.
    pub(crate) fn reserve_with<T>(
        &self,
        size: u64,
        blocks: u64,
        place: impl FnOnce() -> Result<Option<T>, WriteError>,
    ) -> Result<Option<(T, Box<QuotaReservation>)>, WriteError> {
        let bytes = blocks.saturating_add(slack(size));
        let mut guard = self.lock()?;
        guard.take(bytes)?;
        let recounts = guard.usage.recounts();
        let placed = place();
        if !matches!(placed, Ok(Some(_))) {
            guard.usage.sub(bytes).map_err(self.failed())?;
        }
        let reservation = |placed| {
            (
                placed,
                Box::new(QuotaReservation { quota: self.clone(), bytes, size, recounts, placeholder: None }),
            )
        };
        Ok(placed?.map(reservation))
    }

    /// Takes space for a file in the cache that was filled without a reservation.
    pub(crate) fn reserve_filled(&self, file: &File) -> Result<Box<QuotaReservation>, WriteError> {
        let metadata = file.metadata().map_err(self.failed())?;
        let blocks = metadata.blocks().saturating_mul(512);
        let admitted = self.reserve_with(metadata.len(), blocks, || Ok(Some(())))?;
        admitted.map(|((), reservation)| reservation).ok_or_else(|| self.no_space(blocks, Errno::NOSPC))
    }

    /// Changes a file, which may occupy up to `more` bytes more afterwards.
    pub(crate) fn grow<T>(
        &self,
        file: &File,
        more: u64,
        change: impl FnOnce() -> io::Result<T>,
    ) -> Result<io::Result<T>, WriteError> {
        let mut guard = self.lock()?;
        let before = on_disk(file).map_err(self.failed())?;
        guard.take(more)?;
        let changed = change();
        let after = on_disk(file).map_err(self.failed())?;
        let left = before.saturating_add(more).saturating_sub(after);
        guard.usage.sub(left).map_err(self.failed())?;
        Ok(changed)
    }

    /// Records that the number of bytes may be too high: the files of a dead process were removed.
    pub(crate) fn set_inexact(&self) -> Result<(), WriteError> {
        self.lock()?.usage.set_inexact().map_err(self.failed())
    }

    /// Returns the limit in bytes.
    pub(crate) fn limit(&self) -> Result<Option<u64>, WriteError> {
        Ok(self.lock()?.usage.limit())
    }

    /// Sets or removes the limit for all processes, then evicts what is above it.
    pub(crate) fn set_limit(&self, limit: Option<u64>) -> Result<Search, WriteError> {
        self.lock()?.usage.set_limit(limit).map_err(self.failed())?;
        limit.map_or(Ok(Search::default()), |limit| self.shrink(limit))
    }

    /// Evicts until the files take at most `target` bytes, or nothing is left that can be evicted.
    pub(crate) fn shrink(&self, target: u64) -> Result<Search, WriteError> {
        let mut search = Search::default();
        while self.shrink_some(target, &mut search)? {}
        Ok(search)
    }

    /// Evicts at most [`EVICTIONS_PER_LOCK`] files. Returns `true` if more may have to be evicted.
    fn shrink_some(&self, target: u64, search: &mut Search) -> Result<bool, WriteError> {
        let mut guard = self.lock()?;
        let before = search.removed + search.segments;
        while guard.usage.used() > target {
            if search.removed + search.segments - before >= EVICTIONS_PER_LOCK {
                return Ok(true);
            }
            if !guard.evict(search)? {
                break;
            }
        }
        Ok(false)
    }

    /// Removes what dead processes left, and recounts.
    pub(crate) fn tidy(&self) -> Result<(), WriteError> {
        self.lock()?.tidy().map(drop)
    }

    /// Evicts one file to free disk space. Returns `false` if no file can be evicted.
    pub(crate) fn evict_one(&self) -> Result<bool, WriteError> {
        self.lock()?.evict(&mut Search::default())
    }
}

impl Reservation for QuotaReservation {
    /// Reserves space for `size` bytes of a file that grows step by step.
    fn grow(&mut self, file: &File, size: u64) -> Result<(), WriteError> {
        if size <= self.size {
            return Ok(());
        }
        let ample = size.max(self.size.saturating_add(self.size.clamp(GROWTH.0, GROWTH.1)));
        match self.extend(file, ample) {
            Err(WriteError::Full { .. } | WriteError::NoSpace { .. }) => self.extend(file, size),
            done => done,
        }
    }

    /// Reserves space for exactly `size` bytes of the file, and evicts as long as there is too
    /// little.
    fn extend(&mut self, file: &File, size: u64) -> Result<(), WriteError> {
        let quota = self.quota.clone();
        let mut guard = quota.lock()?;
        if self.recounts != guard.usage.recounts() {
            // The recount found at least these bytes.
            self.bytes = on_disk(file).map_err(quota.failed())?;
        }
        let more = quota.cost(size).saturating_sub(self.bytes);
        guard.check_limit(self.bytes.saturating_add(more))?;
        quota.check_disk(&guard, size)?;
        let mut search = Search::default();
        loop {
            guard.take(more)?;
            self.recounts = guard.usage.recounts();
            let Err(error) = self.allocate(file, size) else { break };
            // Some of it may have been allocated.
            file.metadata().and_then(|now| file.set_len(now.len())).map_err(quota.failed())?;
            // A recount cannot find what is not on the disk: the bytes are taken anew after the
            // eviction.
            guard.usage.sub(more).map_err(quota.failed())?;
            if !matches!(error, Errno::NOSPC | Errno::DQUOT) {
                return Err(quota.no_space(size, error));
            }
            quota.check_disk(&guard, size)?;
            let wanted = size.saturating_sub(quota.free().unwrap_or(size)).max(1);
            let before = search.freed;
            while search.freed - before < wanted {
                if !guard.evict(&mut search)? {
                    return Err(quota.no_space(size, error));
                }
            }
            self.recounts = guard.usage.recounts();
        }
        self.bytes = self.bytes.saturating_add(more);
        self.size = size;
        Ok(())
    }

    fn protect(&self, file: &File) -> io::Result<()> {
        lock::share(file)
    }

    /// Ends the reservation of a file that is complete and stays. The quota has exactly its bytes
    /// from now on.
    fn settle(mut self: Box<Self>, file: &File) -> io::Result<()> {
        let size = file.metadata()?.len();
        if size < self.size {
            file.set_len(size)?; // frees what was allocated behind its end
        }
        self.close(on_disk(file)?);
        Ok(())
    }
}

impl QuotaReservation {
    fn allocate(&mut self, file: &File, size: u64) -> Result<(), Errno> {
        match allocate(file, 0, size, self.quota.free())? {
            true => Ok(()),
            false => self
                .make_placeholder(self.quota.cost(size))
                .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
        }
    }

    /// Creates a placeholder for space that could not be allocated, or makes it longer.
    fn make_placeholder(&mut self, bytes: u64) -> io::Result<()> {
        let placeholder = match self.placeholder.take() {
            Some(placeholder) => placeholder,
            None => tempfile::Builder::new()
                .prefix(PLACEHOLDER)
                .tempfile_in(&self.quota.0.scratch)?
                .into_temp_path(),
        };
        let file = File::options().write(true).open(&placeholder)?;
        file.set_len(bytes)?;
        self.placeholder = Some(placeholder);
        Ok(())
    }

    /// Ends the reservation. `bytes` bytes stay taken.
    fn close(&mut self, bytes: u64) {
        self.placeholder = None;
        let taken = std::mem::take(&mut self.bytes);
        if taken == bytes {
            return;
        }
        let closed = self.quota.lock().and_then(|mut guard| {
            let usage = &mut guard.usage;
            match (usage.recounts() == self.recounts, taken > bytes) {
                (true, true) => usage.sub(taken - bytes),
                (true, false) => usage.add(bytes - taken),
                (false, _) if bytes > 0 && taken.saturating_sub(bytes) <= slack(bytes) => Ok(()),
                // It is unknown whether the recount was before or after the removal of the file.
                (false, _) => usage.set_inexact(),
            }
            .map_err(self.quota.failed())
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "the room of a cache is counted too high until it is counted again");
        }
    }
}

impl Drop for QuotaReservation {
    fn drop(&mut self) {
        self.close(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::scratch::Scratch;
    use std::io::Write;
    use tempfile::TempDir;

    /// Returns a quota without a limit, and the directory of a new cache.
    fn quota() -> ((Scratch, TempDir), CacheQuota) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (scratch, _) = Scratch::create(layout.tmp()).unwrap();
        let quota = CacheQuota::new(&layout, scratch.path(), Some(BootId([1; 16])));
        ((scratch, dir), quota)
    }

    fn used(quota: &CacheQuota) -> u64 {
        quota.lock().unwrap().usage.used()
    }

    fn recount(quota: &CacheQuota) -> u64 {
        quota.tidy().unwrap();
        used(quota)
    }

    fn file(quota: &CacheQuota, name: &str) -> (PathBuf, File) {
        let path = quota.0.scratch.join(name);
        (path.clone(), File::create(&path).unwrap())
    }

    #[test]
    fn a_reservation_is_counted_until_settled_or_dropped() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        let (path, mut file) = file(&quota, "file");
        let mut reservation = quota.reserve(&file).unwrap();
        assert_eq!(used(&quota), before);
        reservation.extend(&file, 100_000).unwrap();
        assert_eq!(used(&quota), before + quota.cost(100_000));
        assert!(recount(&quota) >= before + quota.cost(100_000), "another process finds it, too");
        file.write_all(&[1; 100_000]).unwrap();
        reservation.settle(&file).unwrap();
        let settled = before + on_disk(&file).unwrap();
        assert!((settled..=settled + slack(200_000)).contains(&used(&quota)));

        let mut again = quota.reserve(&file).unwrap();
        again.extend(&file, 200_000).unwrap();
        std::fs::remove_file(path).unwrap();
        drop(again);
        assert!((before..=before + slack(200_000)).contains(&used(&quota)), "{} {before}", used(&quota));
        assert_eq!(recount(&quota), before);
    }

    #[test]
    fn a_recount_in_between_never_counts_too_little() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        // Removed after a recount, and before one.
        for recounted_before in [true, false] {
            let (path, file) = file(&quota, "file");
            let mut reservation = quota.reserve(&file).unwrap();
            reservation.extend(&file, 100_000).unwrap();
            if recounted_before {
                recount(&quota);
            }
            std::fs::remove_file(path).unwrap();
            if !recounted_before {
                recount(&quota);
            }
            drop(reservation);
            assert!(used(&quota) >= before);
            assert_eq!(quota.lock().unwrap().usage.accuracy(), crate::quota::account::Accuracy::MayBeHigh);
            assert_eq!(recount(&quota), before);
        }
        // Grown, and settled, after a recount.
        let (_, mut file) = file(&quota, "file");
        let mut reservation = quota.reserve(&file).unwrap();
        reservation.extend(&file, 100_000).unwrap();
        recount(&quota);
        reservation.extend(&file, 300_000).unwrap();
        assert!(used(&quota) >= before + quota.cost(300_000));
        file.write_all(&[1; 300_000]).unwrap();
        recount(&quota);
        reservation.settle(&file).unwrap();
        assert!(used(&quota) >= before + on_disk(&file).unwrap());
    }

    #[test]
    fn a_growing_file_reserves_in_steps_and_keeps_its_size() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        let (_, mut file) = file(&quota, "file");
        let mut reservation = quota.reserve(&file).unwrap();
        reservation.grow(&file, 10).unwrap();
        assert_eq!(used(&quota), before + quota.cost(1 << 20));
        reservation.grow(&file, 1 << 20).unwrap();
        assert_eq!(used(&quota), before + quota.cost(1 << 20));
        file.write_all(b"ten  bytes").unwrap();
        reservation.settle(&file).unwrap();
        assert_eq!(used(&quota), before + on_disk(&file).unwrap());
        assert!(on_disk(&file).unwrap() <= 8192);
    }

    #[test]
    fn a_placeholder_is_counted_while_it_exists() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        let (_, file) = file(&quota, "file");
        let mut reservation = quota.reserve(&file).unwrap();
        reservation.make_placeholder(100_000).unwrap();
        reservation.make_placeholder(200_000).unwrap();
        assert_eq!(recount(&quota), before + 200_000);
        drop(reservation);
        assert_eq!(recount(&quota), before);
    }

    #[test]
    fn a_reservation_that_does_not_fit_takes_nothing() {
        let (_dir, quota) = quota();
        quota.lock().unwrap().usage.set_limit(Some(1 << 20)).unwrap();
        let before = recount(&quota);
        let (_, file) = file(&quota, "file");
        let mut reservation = quota.reserve(&file).unwrap();
        for size in [1 << 20, u64::MAX] {
            let full = reservation.extend(&file, size);
            assert!(matches!(full, Err(WriteError::Full { limit, .. }) if limit == 1 << 20), "{full:?}");
        }
        quota.lock().unwrap().usage.set_limit(None).unwrap();
        assert!(matches!(reservation.extend(&file, 1 << 60), Err(WriteError::NoSpace { .. })));
        drop(reservation);
        assert_eq!((used(&quota), on_disk(&file).unwrap()), (before, 0));
    }
}
