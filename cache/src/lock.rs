//! Lock files: `flock`, through fs2. The only place that knows how.
//!
//! The kernel releases such a lock when its holder dies, however it dies. A lock file is never deleted: who deletes
//! one lets two processes hold "the" lock, one on the file that was there and one on the file that is there now.
//!
//! A lock belongs to the open file, not to the process: two openings exclude each other in one process, too.
//!
//! Blobs themselves are locked as well: shared by everybody who uses one, and owned for a moment by who removes it. A
//! blob is deleted while it is owned, so who has waited for the lock looks whether the file still has a name.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use blobferry_protocol::planted::{Bug, planted};

use blobferry_platform::os;

/// A lock that is held, by this value alone. Dropped, it is released.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Takes the lock if nobody has it. The file is created where there is none.
    pub(crate) fn try_exclusive(path: &Path) -> io::Result<Option<FileLock>> {
        FileLock::try_file(FileLock::open(path, true)?)
    }

    /// The same, but where there is no file, that is an error.
    pub(crate) fn try_existing(path: &Path) -> io::Result<Option<FileLock>> {
        FileLock::try_file(FileLock::open(path, false)?)
    }

    /// Takes the lock, and blocks until nobody else has it. The file is created where there is none.
    pub(crate) fn exclusive(path: &Path) -> io::Result<FileLock> {
        let file = FileLock::open(path, true)?;
        wait_for(&file)?;
        Ok(FileLock(file))
    }

    /// Takes the lock on a thread of its own, which blocks until nobody else has it, and calls `then` there.
    pub(crate) fn wait(
        path: PathBuf,
        then: impl FnOnce(io::Result<FileLock>) + Send + 'static,
    ) -> io::Result<()> {
        #[cfg(feature = "testing")]
        if os::simulation::current().is_some() {
            FileLock::try_again_and_again(path, then);
            return Ok(());
        }
        os::spawn("blobferry-lock", move || then(FileLock::exclusive(&path)))
    }

    /// The same in a simulation, whose one thread must not block.
    #[cfg(feature = "testing")]
    fn try_again_and_again(path: PathBuf, then: impl FnOnce(io::Result<FileLock>) + Send + 'static) {
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

    /// The file, open for reading and writing.
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

/// Whoever has the lock may be a simulated thread, which a system call that blocks would stop, too.
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
        // To close the file is not enough while another thread is starting a child process: between fork and exec
        // the child has the same open file, and would keep the lock. Closing is what is left if this fails.
        _ = fs2::FileExt::unlock(&self.0);
    }
}

/// Locks a blob's file, as long as it is open, against being removed. Waits while somebody owns it, who is about to
/// remove it, or to let it be.
pub(crate) fn share(file: &File) -> io::Result<()> {
    loop {
        match fs2::FileExt::lock_shared(file) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A blob's file that nobody else uses, and nobody can begin to use. Dropped, it can be used again.
#[derive(Debug)]
pub(crate) struct Owned<'a>(&'a File);

impl Owned<'_> {
    /// Owns a blob's file, if nobody uses it.
    pub(crate) fn try_new(file: &File) -> io::Result<Option<Owned<'_>>> {
        Ok(try_lock(file)?.then_some(Owned(file)))
    }

    /// Owns a file, and blocks until nobody else does.
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
    fn a_lock_has_one_holder_and_its_file_stays() {
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
    fn a_file_that_is_used_by_many_is_owned_by_nobody_until_the_last_one_is_gone() {
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
