//! Room on the disk: taken before a byte is written, for all processes out of one account.
//!
//! What counts is what the file system says that the files of the cache take: blobs, partial downloads, the files of
//! open transactions (but not the directories). Who wants to fill a file reserves room for it: the account is raised,
//! and while it is still locked, the file's blocks are allocated. So the reservation can be seen on the disk, and a
//! recount by somebody else finds it. Where the file system can not allocate in advance, a mark stands for it: a file
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
use crate::quota::account::UsageFile;
use crate::quota::evict::{Queue, QuotaGuard, Search};
use blobferry_platform::blobdir::integrity::BootId;
use blobferry_platform::blobdir::layout::Layout;
use blobferry_platform::blobdir::{Reservation, WriteError};
use blobferry_platform::os::files;
use blobferry_platform::sync::{Arc, Mutex};

/// The first letters of a mark's name.
pub(crate) const PLACEHOLDER: &str = "room-";

/// How the number of bytes of a file that grows is raised: at least, and at most, by so much.
const STEP: (u64, u64) = (1 << 20, 64 << 20);

/// The room of one cache. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CacheQuota(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    account: PathBuf,
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
    room: CacheQuota,
    /// What the account has for it.
    bytes: u64,
    /// How many bytes the file may have.
    size: u64,
    /// The number of recounts when that was so.
    recounts: u64,
    mark: Option<TempPath>,
}

impl CacheQuota {
    /// The room of a cache, of which this process has `scratch` for itself.
    pub(crate) fn new(layout: &Layout, scratch: &Path, boot: Option<BootId>) -> CacheQuota {
        let block = rustix::fs::statvfs(layout.tmp()).map_or(0, |stat| stat.f_frsize).max(4096);
        CacheQuota(Arc::new(Inner {
            layout: layout.clone(),
            account: layout.tmp().join(".room"),
            scratch: scratch.to_owned(),
            boot: boot.unwrap_or(BootId::ANY),
            block,
            queue: Mutex::default(),
        }))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The account, locked, with the right to remove files. Counted first, if that was never done in this boot.
    pub(crate) fn ledger(&self) -> Result<QuotaGuard<'_>, WriteError> {
        let queue = self.0.queue.lock();
        let account = UsageFile::open(&self.0.account, self.0.boot).map_err(self.failed())?;
        QuotaGuard::new(self, account, queue)
    }

    /// What became of reading or writing the account.
    pub(crate) fn failed(&self) -> impl FnOnce(io::Error) -> WriteError {
        WriteError::space("keep account of the room in", &self.0.account, 0)
    }

    /// What a file of `size` bytes may take.
    pub(crate) fn cost(&self, size: u64) -> u64 {
        let blocks = size.div_ceil(self.0.block).saturating_mul(self.0.block);
        blocks.saturating_add(slack(size))
    }

    /// Removes a file of the cache that nobody is filling.
    pub(crate) fn remove(&self, path: &Path) -> Result<u64, WriteError> {
        self.ledger()?.remove(path).map_err(WriteError::io("remove", path))
    }

    /// Whether a file of `size` bytes could ever fit, if everything else went. Nothing is removed, nothing taken.
    pub(crate) fn check(&self, size: u64) -> Result<(), WriteError> {
        let needed = self.cost(size);
        let ledger = self.ledger()?;
        ledger.check_limit(needed)?;
        self.check_disk(&ledger, size)
    }

    fn check_disk(&self, ledger: &QuotaGuard<'_>, size: u64) -> Result<(), WriteError> {
        match self.free() {
            Some(free) if free.saturating_add(ledger.account.used()) < size => {
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
    pub(crate) fn held(&self, file: &File) -> Result<Box<QuotaReservation>, WriteError> {
        let ledger = self.ledger()?;
        let bytes = on_disk(file).map_err(self.failed())?;
        let recounts = ledger.account.recounts();
        Ok(Box::new(QuotaReservation { room: self.clone(), bytes, size: 0, recounts, mark: None }))
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
        let mut ledger = self.ledger()?;
        ledger.take(bytes)?;
        let recounts = ledger.account.recounts();
        let placed = place();
        if !matches!(placed, Ok(Some(_))) {
            ledger.account.sub(bytes).map_err(self.failed())?;
        }
        let reserved = |placed| {
            (placed, Box::new(QuotaReservation { room: self.clone(), bytes, size, recounts, mark: None }))
        };
        Ok(placed?.map(reserved))
    }

    /// Takes room for a file that was filled without any.
    pub(crate) fn admit_filled(&self, file: &File) -> Result<Box<QuotaReservation>, WriteError> {
        let metadata = file.metadata().map_err(self.failed())?;
        let bytes = metadata.blocks().saturating_mul(512).saturating_add(slack(metadata.len()));
        let mut ledger = self.ledger()?;
        ledger.take(bytes)?;
        let recounts = ledger.account.recounts();
        Ok(Box::new(QuotaReservation {
            room: self.clone(),
            bytes,
            size: metadata.len(),
            recounts,
            mark: None,
        }))
    }

    /// Changes something about a file that may take `more` bytes for it.
    pub(crate) fn change<T>(
        &self,
        file: &File,
        more: u64,
        change: impl FnOnce() -> io::Result<T>,
    ) -> Result<io::Result<T>, WriteError> {
        let mut ledger = self.ledger()?;
        let before = on_disk(file).map_err(self.failed())?;
        ledger.take(more)?;
        let changed = change();
        let after = on_disk(file).map_err(self.failed())?;
        let left = before.saturating_add(more).saturating_sub(after);
        ledger.account.sub(left).map_err(self.failed())?;
        Ok(changed)
    }

    /// The files of somebody who died are gone, and what he had taken is still in the account.
    pub(crate) fn set_doubt(&self) -> Result<(), WriteError> {
        self.ledger()?.account.set_doubt().map_err(self.failed())
    }

    /// Removes at most so many blobs, until the files take no more than `target` bytes. `false` when that is done, or
    /// nothing is left that can be removed.
    pub(crate) fn shrink(&self, target: u64, most: u64, search: &mut Search) -> Result<bool, WriteError> {
        let mut ledger = self.ledger()?;
        let before = search.removed + search.packs;
        while ledger.account.used() > target {
            if search.removed + search.packs - before >= most {
                return Ok(true);
            }
            if !ledger.evict(search)? {
                break;
            }
        }
        Ok(false)
    }

    /// Removes what dead processes have left, and counts anew.
    pub(crate) fn tidy(&self) -> Result<(), WriteError> {
        self.ledger()?.tidy().map(drop)
    }

    /// Removes one blob to make room on the disk. `false` where there is none that can be removed.
    pub(crate) fn relieve(&self) -> Result<bool, WriteError> {
        self.ledger()?.evict(&mut Search::default())
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
        let room = self.room.clone();
        let mut ledger = room.ledger()?;
        if self.recounts != ledger.account.recounts() {
            // At the recount it had at least as much as this.
            self.bytes = on_disk(file).map_err(room.failed())?;
        }
        let more = room.cost(size).saturating_sub(self.bytes);
        ledger.check_limit(self.bytes.saturating_add(more))?;
        room.check_disk(&ledger, size)?;
        let mut search = Search::default();
        loop {
            ledger.take(more)?;
            self.recounts = ledger.account.recounts();
            let Err(error) = self.allocate(file, size) else { break };
            // Some of it may have been allocated.
            file.metadata().and_then(|now| file.set_len(now.len())).map_err(room.failed())?;
            // What is not on the disk can not be found by a recount: it is taken anew after that.
            ledger.account.sub(more).map_err(room.failed())?;
            if !matches!(error, Errno::NOSPC | Errno::DQUOT) {
                return Err(room.no_space(size, error));
            }
            room.check_disk(&ledger, size)?;
            let wanted = size.saturating_sub(room.free().unwrap_or(size)).max(1);
            let before = search.freed;
            while search.freed - before < wanted {
                if !ledger.evict(&mut search)? {
                    return Err(room.no_space(size, error));
                }
            }
            self.recounts = ledger.account.recounts();
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
        match allocate(file, 0, size, self.room.free())? {
            true => Ok(()),
            false => self
                .make_mark(self.room.cost(size))
                .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
        }
    }

    /// Makes a mark that stands for what could not be allocated, or a longer one.
    fn make_mark(&mut self, bytes: u64) -> io::Result<()> {
        let mark = match self.mark.take() {
            Some(mark) => mark,
            None => tempfile::Builder::new()
                .prefix(PLACEHOLDER)
                .tempfile_in(&self.room.0.scratch)?
                .into_temp_path(),
        };
        let file = File::options().write(true).open(&mark)?;
        file.set_len(bytes)?;
        self.mark = Some(mark);
        Ok(())
    }

    /// Ends it, with `bytes` left in the account.
    fn close(&mut self, bytes: u64) {
        self.mark = None;
        let taken = std::mem::take(&mut self.bytes);
        if taken == bytes {
            return;
        }
        let closed = self.room.ledger().and_then(|mut ledger| {
            let account = &mut ledger.account;
            match (account.recounts() == self.recounts, taken > bytes) {
                (true, true) => account.sub(taken - bytes),
                (true, false) => account.add(bytes - taken),
                (false, _) if bytes > 0 && taken.saturating_sub(bytes) <= slack(bytes) => Ok(()),
                // Whether the recount was before or after the file was removed is not known.
                (false, _) => account.set_doubt(),
            }
            .map_err(self.room.failed())
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

    /// A room without a limit, and with nothing in it but what the account itself needs.
    fn room() -> ((Scratch, TempDir), CacheQuota) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (scratch, _) = Scratch::create(layout.tmp()).unwrap();
        let room = CacheQuota::new(&layout, scratch.path(), Some(BootId([1; 16])));
        ((scratch, dir), room)
    }

    fn used(room: &CacheQuota) -> u64 {
        room.ledger().unwrap().account.used()
    }

    fn recount(room: &CacheQuota) -> u64 {
        room.tidy().unwrap();
        used(room)
    }

    fn file(room: &CacheQuota, name: &str) -> (PathBuf, File) {
        let path = room.0.scratch.join(name);
        (path.clone(), File::create(&path).unwrap())
    }

    #[test]
    fn what_is_reserved_is_in_the_account_and_on_the_disk_until_it_is_settled_or_given_back() {
        let (_dir, room) = room();
        room.ledger().unwrap();
        let before = recount(&room);
        let (path, mut file) = file(&room, "file");
        let mut reserved = room.held(&file).unwrap();
        assert_eq!(used(&room), before);
        reserved.extend(&file, 100_000).unwrap();
        assert_eq!(used(&room), before + room.cost(100_000));
        assert!(recount(&room) >= before + room.cost(100_000), "another one finds it, too");
        file.write_all(&[1; 100_000]).unwrap();
        reserved.settle(&file).unwrap();
        let settled = before + on_disk(&file).unwrap();
        assert!((settled..=settled + slack(200_000)).contains(&used(&room)));

        let mut again = room.held(&file).unwrap();
        again.extend(&file, 200_000).unwrap();
        std::fs::remove_file(path).unwrap();
        drop(again);
        assert!((before..=before + slack(200_000)).contains(&used(&room)), "{} {before}", used(&room));
        assert_eq!(recount(&room), before);
    }

    #[test]
    fn a_recount_in_between_never_leaves_too_little() {
        let (_dir, room) = room();
        room.ledger().unwrap();
        let before = recount(&room);
        // Removed after a recount, and before one.
        for recounted_before in [true, false] {
            let (path, file) = file(&room, "file");
            let mut reserved = room.held(&file).unwrap();
            reserved.extend(&file, 100_000).unwrap();
            if recounted_before {
                recount(&room);
            }
            std::fs::remove_file(path).unwrap();
            if !recounted_before {
                recount(&room);
            }
            drop(reserved);
            assert!(used(&room) >= before);
            assert_eq!(room.ledger().unwrap().account.doubt(), crate::quota::account::Accuracy::High);
            assert_eq!(recount(&room), before);
        }
        // Made larger, and settled, after a recount.
        let (_, mut file) = file(&room, "file");
        let mut reserved = room.held(&file).unwrap();
        reserved.extend(&file, 100_000).unwrap();
        recount(&room);
        reserved.extend(&file, 300_000).unwrap();
        assert!(used(&room) >= before + room.cost(300_000));
        file.write_all(&[1; 300_000]).unwrap();
        recount(&room);
        reserved.settle(&file).unwrap();
        assert!(used(&room) >= before + on_disk(&file).unwrap());
    }

    #[test]
    fn a_file_that_grows_is_given_room_in_steps_and_keeps_only_what_it_needs() {
        let (_dir, room) = room();
        room.ledger().unwrap();
        let before = recount(&room);
        let (_, mut file) = file(&room, "file");
        let mut reserved = room.held(&file).unwrap();
        reserved.grow(&file, 10).unwrap();
        assert_eq!(used(&room), before + room.cost(1 << 20));
        reserved.grow(&file, 1 << 20).unwrap();
        assert_eq!(used(&room), before + room.cost(1 << 20));
        file.write_all(b"ten  bytes").unwrap();
        reserved.settle(&file).unwrap();
        assert_eq!(used(&room), before + on_disk(&file).unwrap());
        assert!(on_disk(&file).unwrap() <= 8192);
    }

    #[test]
    fn what_a_mark_stands_for_is_counted_and_gone_with_it() {
        let (_dir, room) = room();
        room.ledger().unwrap();
        let before = recount(&room);
        let (_, file) = file(&room, "file");
        let mut reserved = room.held(&file).unwrap();
        reserved.make_mark(100_000).unwrap();
        reserved.make_mark(200_000).unwrap();
        assert_eq!(recount(&room), before + 200_000);
        drop(reserved);
        assert_eq!(recount(&room), before);
    }

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let (_dir, room) = room();
        room.ledger().unwrap().account.set_limit(Some(1 << 20)).unwrap();
        let before = recount(&room);
        let (_, file) = file(&room, "file");
        let mut reserved = room.held(&file).unwrap();
        for size in [1 << 20, u64::MAX] {
            let full = reserved.extend(&file, size);
            assert!(matches!(full, Err(WriteError::Full { limit, .. }) if limit == 1 << 20), "{full:?}");
        }
        room.ledger().unwrap().account.set_limit(None).unwrap();
        assert!(matches!(reserved.extend(&file, 1 << 60), Err(WriteError::NoSpace { .. })));
        drop(reserved);
        assert_eq!((used(&room), on_disk(&file).unwrap()), (before, 0));
    }
}
