//! Checks of a directory of blobs: other users cannot change its files, and its file locks work.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::blobdir::error::LayoutError;

/// Write permission for the group, and for other users.
const GROUP: u32 = 0o020;
const OTHERS: u32 = 0o002;

/// Which users may write to a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only this user: the directory is its own.
    Own,
    /// The owner, who may be another user, and the owner's group: the directory is a server's.
    Servers,
}

/// Refuses a directory in which other users can place files that this process would take for blobs.
///
/// # Errors
/// Returns [`LayoutError::Foreign`], [`LayoutError::Writable`] and [`LayoutError::Io`].
pub fn check_access(root: &Path, access: Access) -> Result<(), LayoutError> {
    let metadata = root.metadata().map_err(LayoutError::io("read the attributes of", root))?;
    let user = rustix::process::geteuid().as_raw();
    judge_access(root, access, user, metadata.uid(), metadata.mode())
}

fn judge_access(root: &Path, access: Access, user: u32, owner: u32, mode: u32) -> Result<(), LayoutError> {
    let (foreign, refused) = match access {
        Access::Own => (owner != user, GROUP | OTHERS),
        Access::Servers => (false, OTHERS),
    };
    if foreign {
        return Err(LayoutError::Foreign { root: root.to_owned(), owner, user });
    }
    match mode & refused {
        0 => Ok(()),
        _ => Err(LayoutError::Writable { root: root.to_owned(), mode: mode & 0o7777 }),
    }
}

/// Refuses a directory on a file system whose locks do not exclude. `file` is an existing file in
/// it.
///
/// Two open files must exclude each other: a cache relies on nothing else.
///
/// # Errors
/// Returns [`LayoutError::Locks`].
pub fn check_locks(root: &Path, file: &Path) -> Result<(), LayoutError> {
    let refused = |reason| {
        let (root, file_system) = (root.to_owned(), file_system(file));
        LayoutError::Locks { root, file_system, reason }
    };
    let inode = |file: &File| file.metadata().map(|metadata| metadata.ino());
    loop {
        let first = lock(file);
        let second = match &first {
            Ok(_) => try_lock(file),
            Err(_) => Ok(None),
        };
        if let (Ok(first), Ok(Some(second))) = (&first, &second)
            && inode(first).ok() != inode(second).ok()
        {
            continue; // another process has replaced the file
        }
        if let Ok(first) = &first {
            // Closing is not enough: between fork and exec a child process has the same open file.
            _ = first.unlock();
        }
        return judge_locks(first.map(drop), second.map(|second| second.is_some())).map_err(refused);
    }
}

fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    loop {
        match file.lock() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            locked => return locked.map(|()| file),
        }
    }
}

fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Returns what is wrong with the locks. `first` is the result of the first lock; `second` tells
/// whether a second one succeeded as well.
fn judge_locks(first: io::Result<()>, second: io::Result<bool>) -> Result<(), String> {
    match (first, second) {
        (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
        (Ok(()), Ok(true)) => Err("a lock was given to two at once".into()),
        (Ok(()), Ok(false)) => Ok(()),
    }
}

fn file_system(path: &Path) -> &'static str {
    rustix::fs::statfs(path).map_or("an unknown file system", |stat| name_of(stat.f_type.cast_unsigned()))
}

/// Returns the name of a file system, if it is known for its locks.
fn name_of(magic: u64) -> &'static str {
    match magic {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "CIFS (a Windows share)",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9P",
        0x5346_414f => "AFS",
        0x0bd0_0bd0 => "Lustre",
        0x00c3_6400 => "Ceph",
        _ => "a file system of unusual kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn judged(access: Access, owner: u32, mode: u32) -> &'static str {
        match judge_access(Path::new("/cache"), access, 1000, owner, mode) {
            Ok(()) => "fit",
            Err(LayoutError::Foreign { owner: 0, user: 1000, .. }) => "foreign",
            Err(LayoutError::Writable { .. }) => "writable",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn foreign_or_writable_directories_are_refused() {
        for (owner, mode, own, servers) in [
            (1000, 0o40700, "fit", "fit"),
            (1000, 0o40755, "fit", "fit"),
            (0, 0o40755, "foreign", "fit"),
            (1000, 0o40770, "writable", "fit"),
            (0, 0o42775, "foreign", "fit"),
            (1000, 0o41777, "writable", "writable"),
            (0, 0o41777, "foreign", "writable"),
        ] {
            assert_eq!(judged(Access::Own, owner, mode), own, "{owner} {mode:o}");
            assert_eq!(judged(Access::Servers, owner, mode), servers, "{owner} {mode:o}");
        }
    }

    #[test]
    fn locks_that_fail_or_do_not_exclude_are_refused() {
        let errno = |errno: Errno| io::Error::from(errno);
        assert_eq!(judge_locks(Ok(()), Ok(false)), Ok(()));
        assert!(judge_locks(Err(errno(Errno::NOLCK)), Ok(false)).unwrap_err().contains("locks"));
        assert!(judge_locks(Err(errno(Errno::OPNOTSUPP)), Ok(false)).is_err());
        assert!(judge_locks(Ok(()), Err(errno(Errno::IO))).is_err());
        assert_eq!(judge_locks(Ok(()), Ok(true)).unwrap_err(), "a lock was given to two at once");
    }

    #[test]
    fn locks_work_here_and_the_check_releases_its_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for _ in 0..2 {
            check_locks(Path::new("/"), file.path()).unwrap();
        }
        assert_eq!(name_of(0x6969), "NFS");
    }
}
