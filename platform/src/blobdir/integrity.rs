//! What makes a cached file safe against a power cut without waiting for the disk: a stamp.
//!
//! The stamp is an extended attribute, `user.blobferry`, set before the file gets its name: the digest of its bytes,
//! and the boot of the machine during which that was known to be true. As long as the machine runs, what was written
//! is what is read. After a boot the bytes may or may not have reached the disk; the digest tells.
//!
//! A file that was synced before it got its name has a stamp without a boot, and is trusted in all of them. So is a
//! file without a stamp: it was synced where there was no way to stamp it, or is one of ZEO's.
//!
//! A stamp is 48 bytes, 32 of the digest and 16 of the boot: short enough to stay inside of an ext4 inode.
//!
//! On a file that is still being filled the same attribute says how many bytes are announced, in 8 bytes. The stamp
//! takes its place.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;

use blobferry_protocol::Digest;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::os;

const ATTRIBUTE: &std::ffi::CStr = c"user.blobferry";

/// One boot of this machine, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// What a stamp names whose file was synced: it is trusted in whatever boot.
    pub const ANY: BootId = BootId([0; 16]);

    /// The boot that is running; `None` where the kernel does not tell.
    pub fn current() -> Option<BootId> {
        os::simulated!(simulation => Some(BootId(simulation.boot())));
        let uuid = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits = uuid.trim().replace('-', "");
        u128::from_str_radix(&digits, 16).ok().map(|number| BootId(number.to_be_bytes()))
    }
}

/// Whether a file under a final name can be believed to have the right bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Trust {
    /// It can.
    Verified,
    /// Only if its bytes have this digest; not at all, where there is none: its stamp is of an unknown kind.
    Unverified(Option<Digest>),
}

/// Reads a file's stamp.
pub fn trust(file: &File, boot: Option<BootId>) -> io::Result<Trust> {
    let mut value = [0; 48];
    match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(Trust::Verified),
        Ok(48) => {}
        Ok(_) | Err(Errno::RANGE) => return Ok(Trust::Unverified(None)),
        Err(error) => return Err(error.into()),
    }
    let (mut digest, mut then) = ([0; 32], [0; 16]);
    let (first, second) = value.split_at(32);
    digest.copy_from_slice(first);
    then.copy_from_slice(second);
    match BootId(then) == BootId::ANY || boot == Some(BootId(then)) {
        true => Ok(Trust::Verified),
        false => Ok(Trust::Unverified(Some(Digest(digest)))),
    }
}

/// The digest that a file's stamp tells, whatever the boot; `None` where it has none that is understood.
pub fn digest(file: &File) -> io::Result<Option<Digest>> {
    let mut value = [0; 48];
    match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value[..]) {
        Ok(48) => Ok(value.first_chunk().copied().map(Digest)),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Stamps a file, whose bytes have this digest. An error means that there is no such stamp on it.
pub fn write(file: &File, digest: Digest, boot: BootId) -> io::Result<()> {
    let value = [&digest.0[..], &boot.0[..]].concat();
    writable(file, || rustix::fs::fsetxattr(file, ATTRIBUTE, &value, XattrFlags::empty()))
}

/// Notes on a file that is being filled how many bytes it will have.
pub fn announce(file: &File, size: u64) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(file, ATTRIBUTE, &size.to_be_bytes(), XattrFlags::empty())?)
}

/// How many bytes a file will have that is being filled, where that was noted.
pub fn announced(file: &File) -> Option<u64> {
    let mut size = [0; 8];
    match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut size[..]) {
        Ok(8) => Some(u64::from_be_bytes(size)),
        // It has its stamp: it is whole.
        Err(Errno::RANGE) => file.metadata().ok().map(|metadata| metadata.len()),
        _ => None,
    }
}

/// Takes the stamp off a file, where it has one.
pub fn remove(file: &File) -> io::Result<()> {
    match writable(file, || rustix::fs::fremovexattr(file, ATTRIBUTE)) {
        Err(error) if error.raw_os_error() == Some(Errno::NODATA.raw_os_error()) => Ok(()),
        done => done,
    }
}

/// Changes an attribute of a file that may be read-only: its mode counts, not how it was opened.
pub fn writable<T>(file: &File, change: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
    match change() {
        Err(Errno::ACCESS) => {}
        changed => return Ok(changed?),
    }
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    file.set_permissions(Permissions::from_mode(mode | 0o200))?;
    let changed = change();
    // Where two do this at once, the mode each of them found may be the other's.
    file.set_permissions(Permissions::from_mode(mode & !0o222))?;
    Ok(changed?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_this_boot_is_trusted_and_one_of_another_boot_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("blob")).unwrap();
        let (now, then) = (BootId([1; 16]), BootId([2; 16]));
        let digest = Digest([3; 32]);
        assert_eq!(trust(&file, Some(now)).unwrap(), Trust::Verified, "no stamp");
        if write(&file, digest, now).is_err() {
            return; // This file system has no attributes: there is nothing to promise.
        }
        assert_eq!(trust(&file, Some(now)).unwrap(), Trust::Verified);
        assert_eq!(trust(&file, Some(then)).unwrap(), Trust::Unverified(Some(digest)));
        assert_eq!(trust(&file, None).unwrap(), Trust::Unverified(Some(digest)));
        assert_eq!(super::digest(&file).unwrap(), Some(digest));
        write(&file, digest, BootId::ANY).unwrap();
        assert_eq!(trust(&file, Some(now)).unwrap(), Trust::Verified, "it was synced");
        assert_eq!(super::digest(&file).unwrap(), Some(digest));

        assert_eq!(announced(&file), Some(0), "it is whole, and has no bytes");
        for unknown in [&[0; 47][..], &[0; 49]] {
            rustix::fs::fsetxattr(&file, ATTRIBUTE, unknown, XattrFlags::empty()).unwrap();
            assert_eq!(trust(&file, Some(now)).unwrap(), Trust::Unverified(None));
        }
        remove(&file).unwrap();
        remove(&file).unwrap();
        assert_eq!(trust(&file, Some(then)).unwrap(), Trust::Verified);

        assert_eq!(announced(&file), None);
        announce(&file, 1 << 40).unwrap();
        assert_eq!(announced(&file), Some(1 << 40));
        assert_eq!(
            trust(&file, Some(now)).unwrap(),
            Trust::Unverified(None),
            "it must not be taken for the blob"
        );
    }

    #[test]
    fn a_read_only_file_is_stamped_and_stays_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        let file = File::open(&path).unwrap();
        match write(&file, Digest([3; 32]), BootId([1; 16])) {
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
            done => done.unwrap(),
        }
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o400);
    }
}
