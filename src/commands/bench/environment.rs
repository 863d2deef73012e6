//! The environment of a benchmark: its directory, its progress on the terminal, and pauses for the
//! disk.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{Advice, fadvise, statvfs, syncfs};
use tempfile::TempDir;

/// The type of a file system in memory.
pub(super) const IN_MEMORY: &str = "tmpfs";

/// The shortest pause after a write.
const PAUSE: Duration = Duration::from_millis(200);

/// The further pause for each MiB that was written.
const PAUSE_PER_MIB: Duration = Duration::from_millis(12);

/// The directory of a benchmark, on the disk that is measured. Dropping it removes the directory.
pub(super) struct Environment {
    dir: TempDir,
    screen: ProgressBar,
    /// Whether to pause after writes, so that the disk recovers.
    pauses: bool,
    interrupted: Arc<AtomicBool>,
}

impl Environment {
    /// Makes the directory inside `within`.
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

    /// Returns the directory.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a temporary directory inside the directory.
    pub(super) fn scratch(&self) -> io::Result<TempDir> {
        tempfile::tempdir_in(self.path())
    }

    /// Shows the current step.
    ///
    /// # Errors
    /// The user has interrupted the benchmark.
    pub(super) fn doing(&self, what: impl Into<String>) -> io::Result<()> {
        self.screen.set_message(what.into());
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "it was interrupted"));
        }
        Ok(())
    }

    /// Syncs the file system, and pauses in proportion to the bytes `written`.
    ///
    /// Disks absorb bursts. Without the pause, the next measurement would pay for earlier writes.
    pub(super) fn let_disk_recover(&self, written: u64) -> io::Result<()> {
        syncfs(File::open(self.path())?)?;
        if !self.pauses {
            return self.doing("");
        }
        let pause = PAUSE + PAUSE_PER_MIB.saturating_mul(u32::try_from(written >> 20).unwrap_or(u32::MAX));
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.doing(format!("pause for the disk: {} s", left.as_secs() + 1))?;
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
        Ok(())
    }

    /// Makes a file of `size` pseudorandom bytes, syncs it, and reads it into the page cache.
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

/// Reads a file, or all files of a directory, into the page cache.
pub(super) fn warm(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return std::fs::read_dir(path)?.try_for_each(|entry| warm(&entry?.path()));
    }
    io::copy(&mut File::open(path)?, &mut io::sink()).map(drop)
}

/// Drops a synced file from the page cache, so that the next measurement has free memory.
pub(super) fn forget(path: &Path) -> io::Result<()> {
    Ok(fadvise(File::open(path)?, 0, None, Advice::DontNeed)?)
}

/// Makes a directory in memory with `space` free bytes; `None` if the system has none.
pub(super) fn in_memory(space: u64) -> Option<TempDir> {
    let memory = Path::new("/dev/shm");
    let free = statvfs(memory).ok()?;
    if file_system(memory)? != IN_MEMORY || free.f_bavail.saturating_mul(free.f_frsize) < space {
        return None;
    }
    tempfile::Builder::new().prefix("blobferry-bench-").tempdir_in(memory).ok()
}

/// Returns the type of the file system that a directory is on: the last mount of the longest
/// matching path.
pub(super) fn file_system(dir: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    type_of(&mounts, &dir.canonicalize().ok()?)
}

fn type_of(mounts: &str, dir: &Path) -> Option<String> {
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
    fn file_system_type_is_that_of_the_nearest_mount() {
        let mounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                      23 22 0:5 / /tmp rw - tmpfs tmpfs rw\n\
                      24 22 0:6 / /tmpfile rw - xfs x rw\n";
        for (path, kind) in [("/home", "ext4"), ("/tmp/a", "tmpfs"), ("/tmpfile", "xfs")] {
            assert_eq!(type_of(mounts, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
        assert_eq!(type_of("", Path::new("/")), None);
    }

    #[test]
    fn directory_is_removed_and_interrupts_end_steps() {
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
