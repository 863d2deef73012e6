//! A process's own directory for unfinished files, and the removal of dead processes' directories.
//!
//! It is `tmp/blobferry-<random>/`, with a file `.lock` that is locked as long as its process
//! lives. If the lock of a directory is free, its process is dead; age and process ids do not
//! matter. Other names in `tmp/` are left alone.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::lock::FileLock;

const PREFIX: &str = "blobferry-";
const LOCK: &str = ".lock";

/// The first letters of the names of placeholders, which represent reservations that could not be
/// allocated.
pub(crate) const PLACEHOLDER: &str = "room-";

/// The directory of this process. Dropped, it is removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
    /// Released after the directory was removed: fields are dropped in this order.
    _lock: FileLock,
}

impl Scratch {
    /// Removes the directories of dead processes from `tmp`, and creates one for this process. The
    /// second value tells whether there was a directory to remove.
    pub(crate) fn create(tmp: &Path) -> io::Result<(Scratch, bool)> {
        // No process sweeps while this is held, so none finds the new directory before it is
        // locked.
        let _lock = FileLock::exclusive(&tmp.join(LOCK))?;
        let swept = sweep(tmp)? > 0;
        let mine = Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix(PREFIX).permissions(mine).tempdir_in(tmp)?;
        let lock = FileLock::exclusive(&dir.path().join(LOCK))?;
        Ok((Scratch { dir, _lock: lock }, swept))
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes the directories of dead processes, unless another process is doing so. Returns their
/// number.
pub(crate) fn try_sweep(tmp: &Path) -> io::Result<u64> {
    match FileLock::try_exclusive(&tmp.join(LOCK))? {
        Some(_lock) => sweep(tmp),
        None => Ok(0),
    }
}

/// Removes the directories of dead processes. Returns their number.
fn sweep(tmp: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(tmp)? {
        let entry = entry?;
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_ours || !entry.file_type()?.is_dir() {
            continue;
        }
        let dir = entry.path();
        let lock = match FileLock::try_existing(&dir.join(LOCK)) {
            Ok(None) => continue,
            Ok(lock) => lock,
            // Its process died while it created or removed the directory; or is just removing it.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot tell whether unfinished files are in use");
                continue;
            }
        };
        match fs::remove_dir_all(&dir) {
            Ok(()) => {
                removed += 1;
                tracing::info!(dir = %dir.display(), "removed the unfinished files of a process that died");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(dir = %dir.display(), %error, "cannot remove unfinished files"),
        }
        drop(lock);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_processes_are_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let (living, swept) = Scratch::create(tmp.path()).unwrap();
        assert!(!swept);
        fs::write(living.path().join("half"), "half").unwrap();
        let dead = tmp.path().join("blobferry-dead");
        let half_made = tmp.path().join("blobferry-half");
        let stranger = tmp.path().join("python");
        for dir in [&dead, &half_made, &stranger] {
            fs::create_dir(dir).unwrap();
        }
        fs::write(dead.join(".lock"), "").unwrap();
        fs::write(dead.join("half"), "half").unwrap();

        let (other, swept) = Scratch::create(tmp.path()).unwrap();
        assert!(swept);
        assert!(living.path().join("half").exists());
        assert!(stranger.exists());
        assert!(!dead.exists());
        assert!(!half_made.exists());

        let path = other.path().to_owned();
        drop(other);
        assert!(!path.exists());
    }
}
