//! The files in the directory of segments, opened so that links, pipes and other users' files do no
//! harm.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// Write permission for the group and for other users.
const OTHERS: u32 = 0o022;

/// The flags for all files: no link is followed, and no pipe blocks.
const CAREFUL: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// For reading.
    Read,
    /// For reading, and for writing at its end.
    Append,
    /// For reading, and for writing anywhere.
    Update,
    /// The same, and it is created if it is missing.
    Make,
    /// The same as [`How::Append`], and it must not exist.
    New,
}

/// Opens a regular file that only this user can write. Returns `None` if there is none, or
/// something else.
pub(crate) fn open(dir: &File, name: &str, how: How) -> io::Result<Option<(File, Metadata)>> {
    let flags = match how {
        How::Read => OFlags::RDONLY,
        How::Append => OFlags::RDWR | OFlags::APPEND,
        How::Update => OFlags::RDWR,
        How::Make => OFlags::RDWR | OFlags::CREATE,
        How::New => OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL,
    };
    let file = match openat(dir, name, flags | CAREFUL, Mode::RUSR | Mode::WUSR) {
        Ok(file) => File::from(file),
        // A link; a pipe or a directory, opened for writing; another user's file.
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::ACCESS) => return Ok(None),
        Err(Errno::NOENT) if how != How::Make && how != How::New => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    let mine = metadata.is_file()
        && metadata.nlink() == 1
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & OTHERS == 0;
    Ok(mine.then_some((file, metadata)))
}

/// Removes a name, unless it is a directory's.
pub(crate) fn remove(dir: &File, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        done => Ok(done?),
    }
}

/// Opens the directory of segments, which only this user may write. Returns `None` if it is
/// missing.
pub(crate) fn open_dir(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | CAREFUL;
    let dir = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => File::from(dir),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let metadata = dir.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & OTHERS != 0 {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "other users may write to it"));
    }
    Ok(Some(dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_platform::blobdir::layout::{segment_name, segment_number};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_a_regular_file_of_this_user_is_opened() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        let dir = open_dir(home.path()).unwrap().unwrap();
        let opens = |name: &str| [How::Read, How::Append].map(|how| open(&dir, name, how).unwrap().is_some());
        fs::write(path("good"), "x").unwrap();
        fs::set_permissions(path("good"), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(opens("good"), [true, true]);
        assert_eq!(opens("none"), [false, false]);
        symlink(path("good"), path("link")).unwrap();
        fs::create_dir(path("dir")).unwrap();
        rustix::fs::mkfifoat(&dir, "pipe", Mode::RWXU).unwrap();
        fs::write(path("twice"), "x").unwrap();
        fs::hard_link(path("twice"), path("thrice")).unwrap();
        fs::write(path("open"), "x").unwrap();
        fs::set_permissions(path("open"), Permissions::from_mode(0o666)).unwrap();
        for name in ["link", "dir", "pipe", "twice", "open"] {
            assert_eq!(opens(name), [false, false], "{name}");
        }
        assert!(open(&dir, "good", How::New).is_err());
        for name in ["link", "pipe", "dir"] {
            assert!(open(&dir, name, How::Make).unwrap().is_none(), "{name}");
        }
        remove(&dir, "link").unwrap();
        remove(&dir, "link").unwrap();
        assert!(remove(&dir, "dir").is_err());
        assert!(open(&dir, "link", How::Make).unwrap().is_some());
    }

    #[test]
    fn a_linked_or_writable_directory_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let (segments, link) = (home.path().join("packs"), home.path().join("link"));
        assert!(open_dir(&segments).unwrap().is_none());
        fs::create_dir(&segments).unwrap();
        symlink(&segments, &link).unwrap();
        assert!(open_dir(&link).is_err());
        fs::set_permissions(&segments, Permissions::from_mode(0o777)).unwrap();
        assert!(open_dir(&segments).is_err());
    }

    #[test]
    fn segments_are_named_by_their_number() {
        assert_eq!(segment_number(&segment_name(0xabc)), Some(0xabc));
        for name in ["abc.pack", "00000ABC.pack", "+0000abc.pack", "100000abc.pack", "index", ".pack"] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }
}
