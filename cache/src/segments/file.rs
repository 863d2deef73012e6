//! The files of the packs' directory: opened with care, whatever lies there under their names.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// Write permission for others.
const OTHERS: u32 = 0o022;

/// What all of them are opened with: no link is followed, and no pipe waited for.
const CAREFUL: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// To read it.
    Read,
    /// To read it and to write at its end.
    Append,
    /// To read it and to write anywhere.
    Update,
    /// The same, and it is made where it is not there.
    Make,
    /// The same as [`How::Append`], and it must not be there.
    New,
}

/// Opens a regular file of this user's alone; `None` where there is none, or something else.
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
        // A link; a pipe or a directory, where it is opened to write; somebody else's.
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

/// Removes what has a name, but for a directory.
pub(crate) fn remove(dir: &File, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        done => Ok(done?),
    }
}

/// Opens the directory of the packs, of this user's alone; `None` where there is none.
pub(crate) fn open_dir(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | CAREFUL;
    let dir = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => File::from(dir),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let metadata = dir.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & OTHERS != 0 {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "others may write to it"));
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
    fn only_a_regular_file_of_this_users_alone_is_opened() {
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
    fn a_directory_that_is_a_link_or_that_others_can_write_to_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let (packs, link) = (home.path().join("packs"), home.path().join("link"));
        assert!(open_dir(&packs).unwrap().is_none());
        fs::create_dir(&packs).unwrap();
        symlink(&packs, &link).unwrap();
        assert!(open_dir(&link).is_err());
        fs::set_permissions(&packs, Permissions::from_mode(0o777)).unwrap();
        assert!(open_dir(&packs).is_err());
    }

    #[test]
    fn packs_are_named_by_their_number() {
        assert_eq!(segment_number(&segment_name(0xabc)), Some(0xabc));
        for name in ["abc.pack", "00000ABC.pack", "+0000abc.pack", "100000abc.pack", "index", ".pack"] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }
}
