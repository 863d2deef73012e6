//! Pins: an extended attribute on a file that all processes respect.

use std::fs::File;
use std::io;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use blobferry_platform::blobdir::integrity;

const ATTRIBUTE: &std::ffi::CStr = c"user.blobferry.pinned";

/// Returns whether a file is pinned.
pub(crate) fn is_pinned(file: &File) -> io::Result<bool> {
    let mut nothing = [0; 0];
    match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut nothing[..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Pins a file.
pub(crate) fn set(file: &File) -> io::Result<()> {
    integrity::writable(file, || rustix::fs::fsetxattr(file, ATTRIBUTE, b"", XattrFlags::empty()))
}

/// Unpins a file.
pub(crate) fn remove(file: &File) -> io::Result<()> {
    match integrity::writable(file, || rustix::fs::fremovexattr(file, ATTRIBUTE)) {
        Err(error) if error.raw_os_error() == Some(Errno::NODATA.raw_os_error()) => Ok(()),
        done => done,
    }
}

/// Returns whether an error says that the file system has no extended attributes.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_stays_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("blob")).unwrap();
        assert!(!is_pinned(&file).unwrap());
        match set(&file) {
            Err(error) if is_unsupported(&error) => return println!("skipped: no extended attributes"),
            done => done.unwrap(),
        }
        set(&file).unwrap();
        assert!(is_pinned(&file).unwrap());
        remove(&file).unwrap();
        remove(&file).unwrap();
        assert!(!is_pinned(&file).unwrap());
    }
}
