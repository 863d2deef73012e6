//! Room on the disk: taken before a byte is written, for all processes out of one account.
//!
//! What counts is what the file system says that the files of the cache take: blobs, partial downloads, the files of
//! open transactions (but not the directories). Who wants to fill a file reserves room for it: the account is raised,
//! and while it is still locked, the file's blocks are allocated. So the reservation can be seen on the disk, and a
//! recount by somebody else finds it. Where the file system can not allocate in advance, a placeholder stands for it: a file
//! in the process's own directory that is as long as the reservation, and takes no room itself.
//!
//! What does not fit is made to fit: `evict.rs`.
//!
//! A reservation is a little larger than the file, for what the file system may need to find it. It is settled when
//! the file is complete. If there was a recount in between, that has settled it already, or has counted a little too
//! much, which the next one will put right: the account never has too little.

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

/// How the number of bytes of a file that grows is raised: at least, and at most, by so much.
const STEP: (u64, u64) = (1 << 20, 64 << 20);

/// The number of files that are evicted before other threads and processes can lock the account.
const EVICTIONS_PER_LOCK: u64 = 64;

/// The room of one cache. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CacheQuota(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    usage_path: PathBuf,
    /// Where marks are made.
    scratch: PathBuf,
    boot: BootId,
    /// The file system gives room in blocks of so many bytes.
    block: u64,
    queue: Mutex<Queue>,
}

/// Room for one file. Dropped, it is given back: then the file must be gone.
#[derive(Debug)]
pub(crate) struct QuotaReservation {
    quota: CacheQuota,
    /// What the account has for it.
    bytes: u64,
    /// How many bytes the file may have.
    size: u64,
    /// The number of recounts when that was so.
    recounts: u64,
    placeholder: Option<TempPath>,
}

impl CacheQuota {
    /// The room of a cache, of which this process has `scratch` for itself.
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

    /// Locks the account, with the right to evict. Counts the files first, if that was not done since the boot.
    pub(crate) fn lock(&self) -> Result<QuotaGuard<'_>, WriteError> {
        let queue = self.0.queue.lock();
        let usage = UsageFile::open(&self.0.usage_path, self.0.boot).map_err(self.failed())?;
        QuotaGuard::new(&self.0.layout, &self.0.usage_path, usage, queue)
    }

    /// What became of reading or writing the account.
    pub(crate) fn failed(&self) -> impl FnOnce(io::Error) -> WriteError {
        account::failed(&self.0.usage_path)
    }

    /// What a file of `size` bytes may take.
    pub(crate) fn cost(&self, size: u64) -> u64 {
        let blocks = size.div_ceil(self.0.block).saturating_mul(self.0.block);
        blocks.saturating_add(slack(size))
    }

    /// Removes a file of the cache that nobody is filling.
    pub(crate) fn remove(&self, path: &Path) -> Result<u64, WriteError> {
        self.lock()?.remove(path).map_err(WriteError::io("remove", path))
    }

    /// Whether a file of `size` bytes could ever fit, if everything else went. Nothing is removed, nothing taken.
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

    /// The room that a file in the cache has already, which is in the account. It may be none.
    pub(crate) fn adopt(&self, file: &File) -> Result<Box<QuotaReservation>, WriteError> {
        let guard = self.lock()?;
        let bytes = on_disk(file).map_err(self.failed())?;
        let recounts = guard.usage.recounts();
        Ok(Box::new(QuotaReservation { quota: self.clone(), bytes, size: 0, recounts, placeholder: None }))
    }

    /// Takes room for a file that is there already, of the given length and blocks, and puts it into the cache with
    /// `place`, at once. `None` where `place` gives that: it could not be done, and nothing is taken.
    pub(crate) fn admit<T>(
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
            (placed, Box::new(QuotaReservation { quota: self.clone(), bytes, size, recounts, placeholder: None }))
        };
        Ok(placed?.map(reservation))
    }

    /// Takes room for a file that was filled without any.
    pub(crate) fn admit_filled(&self, file: &File) -> Result<Box<QuotaReservation>, WriteError> {
        let metadata = file.metadata().map_err(self.failed())?;
        let blocks = metadata.blocks().saturating_mul(512);
        let admitted = self.admit(metadata.len(), blocks, || Ok(Some(())))?;
        admitted.map(|((), reservation)| reservation).ok_or_else(|| self.no_space(blocks, Errno::NOSPC))
    }

    /// Changes something about a file that may take `more` bytes for it.
    pub(crate) fn change<T>(
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

    /// The files of somebody who died are gone, and what he had taken is still in the account.
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

    /// Removes what dead processes have left, and counts anew.
    pub(crate) fn tidy(&self) -> Result<(), WriteError> {
        self.lock()?.tidy().map(drop)
    }

    /// Removes one blob to make room on the disk. `false` where there is none that can be removed.
    pub(crate) fn evict_one(&self) -> Result<bool, WriteError> {
        self.lock()?.evict(&mut Search::default())
    }
}

impl Reservation for QuotaReservation {
    /// Sees to it that there is room for `size` bytes, for a file that grows step by step.
    fn grow(&mut self, file: &File, size: u64) -> Result<(), WriteError> {
        if size <= self.size {
            return Ok(());
        }
        let ample = size.max(self.size.saturating_add(self.size.clamp(STEP.0, STEP.1)));
        match self.extend(file, ample) {
            Err(WriteError::Full { .. } | WriteError::NoSpace { .. }) => self.extend(file, size),
            done => done,
        }
    }

    /// Reserves room for exactly `size` bytes of the file: removes blobs as long as there is too little.
    fn extend(&mut self, file: &File, size: u64) -> Result<(), WriteError> {
        let quota = self.quota.clone();
        let mut guard = quota.lock()?;
        if self.recounts != guard.usage.recounts() {
            // At the recount it had at least as much as this.
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
            // What is not on the disk can not be found by a recount: it is taken anew after that.
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

    /// The file is complete, and stays: what it really takes is what the account has for it from now on.
    fn settle(mut self: Box<Self>, file: &File) -> io::Result<()> {
        let size = file.metadata()?.len();
        if size < self.size {
            file.set_len(size)?; // gives back what was allocated behind its end
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

    /// Makes a placeholder that stands for what could not be allocated, or a longer one.
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

    /// Ends it, with `bytes` left in the account.
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
                // Whether the recount was before or after the file was removed is not known.
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

    /// A quota without a limit, and with nothing in it but what the account itself needs.
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
    fn what_is_reserved_is_in_the_account_and_on_the_disk_until_it_is_settled_or_given_back() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        let (path, mut file) = file(&quota, "file");
        let mut reservation = quota.adopt(&file).unwrap();
        assert_eq!(used(&quota), before);
        reservation.extend(&file, 100_000).unwrap();
        assert_eq!(used(&quota), before + quota.cost(100_000));
        assert!(recount(&quota) >= before + quota.cost(100_000), "another one finds it, too");
        file.write_all(&[1; 100_000]).unwrap();
        reservation.settle(&file).unwrap();
        let settled = before + on_disk(&file).unwrap();
        assert!((settled..=settled + slack(200_000)).contains(&used(&quota)));

        let mut again = quota.adopt(&file).unwrap();
        again.extend(&file, 200_000).unwrap();
        std::fs::remove_file(path).unwrap();
        drop(again);
        assert!((before..=before + slack(200_000)).contains(&used(&quota)), "{} {before}", used(&quota));
        assert_eq!(recount(&quota), before);
    }

    #[test]
    fn a_recount_in_between_never_leaves_too_little() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        // Removed after a recount, and before one.
        for recounted_before in [true, false] {
            let (path, file) = file(&quota, "file");
            let mut reservation = quota.adopt(&file).unwrap();
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
        // Made larger, and settled, after a recount.
        let (_, mut file) = file(&quota, "file");
        let mut reservation = quota.adopt(&file).unwrap();
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
    fn a_file_that_grows_is_given_room_in_steps_and_keeps_only_what_it_needs() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        let (_, mut file) = file(&quota, "file");
        let mut reservation = quota.adopt(&file).unwrap();
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
    fn what_a_mark_stands_for_is_counted_and_gone_with_it() {
        let (_dir, quota) = quota();
        quota.lock().unwrap();
        let before = recount(&quota);
        let (_, file) = file(&quota, "file");
        let mut reservation = quota.adopt(&file).unwrap();
        reservation.make_placeholder(100_000).unwrap();
        reservation.make_placeholder(200_000).unwrap();
        assert_eq!(recount(&quota), before + 200_000);
        drop(reservation);
        assert_eq!(recount(&quota), before);
    }

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let (_dir, quota) = quota();
        quota.lock().unwrap().usage.set_limit(Some(1 << 20)).unwrap();
        let before = recount(&quota);
        let (_, file) = file(&quota, "file");
        let mut reservation = quota.adopt(&file).unwrap();
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
