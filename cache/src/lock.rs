//! File locks: `flock`, through fs2. No other file of this crate locks files.
//!
//! The kernel releases such a lock when its process dies. A lock file is never deleted: otherwise
//! two processes could hold "the" lock, one on the deleted file and one on the new one.
//!
//! A lock belongs to the open file, not to the process: two open files exclude each other in one
//! process, too.
//!
//! Blobs' files are locked as well. Each process that uses one has a shared lock; a process that
//! removes one has an exclusive lock meanwhile. So after waiting for a shared lock, the caller must
//! check that the file still has a name.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use blobferry_protocol::planted::{Bug, planted};

use blobferry_platform::os;

/// A lock that only this value holds. Dropped, it is released.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Takes the lock if it is free. Creates the file if it is missing.
    pub(crate) fn try_exclusive(path: &Path) -> io::Result<Option<FileLock>> {
        FileLock::try_file(FileLock::open(path, true)?)
    }

    /// Takes the lock if it is free. Fails if the file is missing.
    pub(crate) fn try_existing(path: &Path) -> io::Result<Option<FileLock>> {
        FileLock::try_file(FileLock::open(path, false)?)
    }

    /// Takes the lock, and blocks until it is free. Creates the file if it is missing.
    pub(crate) fn exclusive(path: &Path) -> io::Result<FileLock> {
        let file = FileLock::open(path, true)?;
        wait_for(&file)?;
        Ok(FileLock(file))
    }

    /// Takes the lock on a new thread, which blocks until the lock is free and then calls `then`.
    pub(crate) fn wait(
        path: PathBuf,
        then: impl FnOnce(io::Result<FileLock>) + Send + 'static,
    ) -> io::Result<()> {
        #[cfg(feature = "testing")]
        if os::simulation::current().is_some() {
            FileLock::wait_simulated(path, then);
            return Ok(());
        }
        os::spawn("blobferry-lock", move || then(FileLock::exclusive(&path)))
    }

    /// Does the same in a simulation, whose only thread must not block.
    #[cfg(feature = "testing")]
    fn wait_simulated(path: PathBuf, then: impl FnOnce(io::Result<FileLock>) + Send + 'static) {
        let mut then = Some(then);
        os::register_step(move || match FileLock::try_exclusive(&path).transpose() {
            None => os::Next::Waits,
            Some(locked) => {
                if let Some(then) = then.take() {
                    then(locked);
                }
                os::Next::Over
            }
        });
    }

    /// Returns the file, open for reading and writing.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    fn try_file(file: File) -> io::Result<Option<FileLock>> {
        Ok(try_lock(&file)?.then_some(FileLock(file)))
    }

    fn open(path: &Path, create: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)
    }
}

#[cfg(not(feature = "shuttle"))]
fn wait_for(file: &File) -> io::Result<()> {
    loop {
        match fs2::FileExt::lock_exclusive(file) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The holder may be a simulated thread, which a blocking system call would stop as well.
#[cfg(feature = "shuttle")]
fn wait_for(file: &File) -> io::Result<()> {
    blobferry_platform::sync::until(|| try_lock(file).map(|locked| locked.then_some(())).transpose())
}

fn try_lock(file: &File) -> io::Result<bool> {
    match fs2::FileExt::try_lock_exclusive(file) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if planted(Bug::DeleteLockFile)
            && let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
        {
            _ = std::fs::remove_file(path);
        }
        // Closing is not enough: between fork and exec a child process has the same open file, and
        // would keep the lock. If unlocking fails, closing is all that is left.
        _ = fs2::FileExt::unlock(&self.0);
    }
}

/// Locks a blob's file against removal, as long as it is open. Waits while another process has it
/// locked exclusively.
pub(crate) fn share(file: &File) -> io::Result<()> {
    loop {
        match fs2::FileExt::lock_shared(file) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A blob's file that no other process uses or can begin to use. Dropped, it can be used again.
#[derive(Debug)]
pub(crate) struct Owned<'a>(&'a File);

impl Owned<'_> {
    /// Locks a blob's file exclusively, if no process uses it.
    pub(crate) fn try_new(file: &File) -> io::Result<Option<Owned<'_>>> {
        Ok(try_lock(file)?.then_some(Owned(file)))
    }

    /// Locks a file exclusively, and blocks until it can.
    pub(crate) fn wait(file: &File) -> io::Result<Owned<'_>> {
        wait_for(file)?;
        Ok(Owned(file))
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        _ = fs2::FileExt::unlock(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        assert_eq!(FileLock::try_existing(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let held = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop(held);
        assert!(path.exists());
        let held = FileLock::exclusive(&path).unwrap();
        assert!(FileLock::try_existing(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_existing(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_in_use_cannot_be_owned() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (one, other) = (open(), open());
        share(&one).unwrap();
        share(&other).unwrap();
        assert!(Owned::try_new(&open()).unwrap().is_none());
        drop(one);
        assert!(Owned::try_new(&open()).unwrap().is_none());
        drop(other);
        let third = open();
        let owned = Owned::try_new(&third).unwrap().unwrap();
        assert!(Owned::try_new(&open()).unwrap().is_none());
        drop(owned);
        share(&open()).unwrap();
    }
}
