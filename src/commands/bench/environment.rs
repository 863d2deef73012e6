//! Where a benchmark happens: its directory, what is shown meanwhile, and pauses for the disk.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{Advice, fadvise, statvfs, syncfs};
use tempfile::TempDir;

/// The kind of a file system that has no disk.
pub(super) const IN_MEMORY: &str = "tmpfs";

/// The directory of a benchmark, on the disk that is measured. Gone when it is dropped.
pub(super) struct Environment {
    dir: TempDir,
    screen: ProgressBar,
    /// Pauses in which a disk recovers from what was written.
    pauses: bool,
    interrupted: Arc<AtomicBool>,
}

impl Environment {
    /// Makes the directory, in one that was named or the current one.
    pub(super) fn new(within: &Path, pauses: bool, interrupted: Arc<AtomicBool>) -> io::Result<Environment> {
        let dir = tempfile::Builder::new().prefix("blobferry-bench-").tempdir_in(within)?;
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let screen = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
            screen.set_style(style);
        }
        screen.enable_steady_tick(Duration::from_millis(250));
        Ok(Environment { dir, screen, pauses, interrupted })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new directory in it, for a while.
    pub(super) fn scratch(&self) -> io::Result<TempDir> {
        tempfile::tempdir_in(self.path())
    }

    /// Shows what is being done.
    ///
    /// # Errors
    /// The user wants no more.
    pub(super) fn doing(&self, what: impl Into<String>) -> io::Result<()> {
        self.screen.set_message(what.into());
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "it was interrupted"));
        }
        Ok(())
    }

    /// Lets what was written sink in, and the disk recover: it has bursts, and whoever writes next would else pay for
    /// what was written before.
    pub(super) fn let_disk_recover(&self, written: u64) -> io::Result<()> {
        syncfs(File::open(self.path())?)?;
        if !self.pauses {
            return self.doing("");
        }
        let end = Instant::now() + Duration::from_millis(200 + (written >> 20) * 12);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.doing(format!("the disk pauses: {} s", left.as_secs() + 1))?;
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
        Ok(())
    }

    /// A file of so many bytes that look random, written out and read: it is in memory now.
    pub(super) fn file(&self, name: &str, size: u64) -> io::Result<PathBuf> {
        self.doing(format!("making a file of {}", crate::format::size(size)))?;
        let path = self.path().join(name);
        let mut file = File::create(&path)?;
        let (mut hasher, mut left) = (blake3::Hasher::new(), size);
        hasher.update(name.as_bytes());
        let (mut bytes, mut block) = (hasher.finalize_xof(), vec![0; 1 << 20]);
        while left > 0 {
            let n = block.len().min(usize::try_from(left).unwrap_or(block.len()));
            bytes.fill(&mut block[..n]);
            file.write_all(&block[..n])?;
            left -= n as u64;
        }
        file.sync_all()?;
        warm(&path)?;
        Ok(path)
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        self.screen.finish_and_clear();
    }
}

/// Reads a file, or all files of a directory: what is measured next is not the disk that they would be read from.
pub(super) fn warm(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return std::fs::read_dir(path)?.try_for_each(|entry| warm(&entry?.path()));
    }
    io::copy(&mut File::open(path)?, &mut io::sink()).map(drop)
}

/// Has a file that was written out leave the memory: a machine that has to find memory first is another machine.
pub(super) fn forget(path: &Path) -> io::Result<()> {
    Ok(fadvise(File::open(path)?, 0, None, Advice::DontNeed)?)
}

/// A directory in memory, with room for so many bytes, if the system has one.
pub(super) fn in_memory(room: u64) -> Option<TempDir> {
    let memory = Path::new("/dev/shm");
    let free = statvfs(memory).ok()?;
    if file_system(memory)? != IN_MEMORY || free.f_bavail.saturating_mul(free.f_frsize) < room {
        return None;
    }
    tempfile::Builder::new().prefix("blobferry-bench-").tempdir_in(memory).ok()
}

/// What kind of file system a directory is on: the last mount of the longest path that leads to it.
pub(super) fn file_system(dir: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    kind_of(&mounts, &dir.canonicalize().ok()?)
}

fn kind_of(mounts: &str, dir: &Path) -> Option<String> {
    let mount = |line: &'_ str| {
        let (place, kind) = line.split_once(" - ")?;
        let place = place.split(' ').nth(4)?.to_owned();
        let kind = kind.split(' ').next()?.to_owned();
        dir.starts_with(&place).then_some((place.len(), kind))
    };
    mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_file_system_is_that_of_the_mount_nearest_to_it() {
        let mounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                      23 22 0:5 / /tmp rw - tmpfs tmpfs rw\n\
                      24 22 0:6 / /tmpfile rw - xfs x rw\n";
        for (path, kind) in [("/home", "ext4"), ("/tmp/a", "tmpfs"), ("/tmpfile", "xfs")] {
            assert_eq!(kind_of(mounts, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
        assert_eq!(kind_of("", Path::new("/")), None);
    }

    #[test]
    fn nothing_is_left_of_it_and_an_interrupt_ends_it() {
        let home = tempfile::tempdir().unwrap();
        let interrupted = Arc::new(AtomicBool::new(false));
        let environment = Environment::new(home.path(), false, interrupted.clone()).unwrap();
        let file = environment.file("a", 3 << 19).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3 << 19);
        environment.let_disk_recover(1 << 40).unwrap();
        interrupted.store(true, Ordering::Relaxed);
        assert_eq!(environment.doing("more").unwrap_err().kind(), io::ErrorKind::Interrupted);
        drop(environment);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
