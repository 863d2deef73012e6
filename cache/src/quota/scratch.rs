//! A process's own directory for unfinished files, and how those of dead processes are swept away.
//!
//! It is `tmp/blobferry-<random>/`, with a file `.lock` that is locked as long as its owner lives. A directory whose
//! lock is free has a dead owner: no age and no process id is asked. What else is in `tmp/` is left alone.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::lock::FileLock;

const PREFIX: &str = "blobferry-";
const LOCK: &str = ".lock";

/// The first letters of the names of placeholders: see [`QuotaReservation`](crate::quota::reservation::QuotaReservation).
pub(crate) const PLACEHOLDER: &str = "room-";

/// An own directory. Dropped, it is removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
    /// Released after the directory was removed: fields are dropped in this order.
    _lock: FileLock,
}

impl Scratch {
    /// Sweeps `tmp`, and makes an own directory in it. Whether there was something to sweep.
    pub(crate) fn create(tmp: &Path) -> io::Result<(Scratch, bool)> {
        // Nobody sweeps while this is held. So nobody finds the new directory before it is locked.
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

/// Removes the directories of dead owners, unless somebody does that just now; how many.
pub(crate) fn try_sweep(tmp: &Path) -> io::Result<u64> {
    match FileLock::try_exclusive(&tmp.join(LOCK))? {
        Some(_lock) => sweep(tmp),
        None => Ok(0),
    }
}

/// Removes the directories of dead owners; how many.
fn sweep(tmp: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(tmp)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !entry.file_type()?.is_dir() {
            continue;
        }
        let dir = entry.path();
        let lock = match FileLock::try_existing(&dir.join(LOCK)) {
            Ok(None) => continue,
            Ok(lock) => lock,
            // It was half made, or half removed, by somebody who died then; or is just being removed.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "can not tell whether unfinished files are in use");
                continue;
            }
        };
        match fs::remove_dir_all(&dir) {
            Ok(()) => {
                removed += 1;
                tracing::info!(dir = %dir.display(), "removed the unfinished files of a process that died");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(dir = %dir.display(), %error, "can not remove unfinished files"),
        }
        drop(lock);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_swept_away_and_the_living_and_strangers_are_not() {
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
