//! The stamp: an extended attribute that makes a cached file safe against a power cut without a
//! sync.
//!
//! The stamp is the attribute `user.blobferry`. It is set before the file gets its final name. It
//! has the digest of the file's bytes, and the boot of the machine during which the digest was
//! computed. While the machine runs, reads return what was written. After another boot the bytes
//! may or may not have reached the disk, and the digest tells.
//!
//! A file that was synced before it got its name has a stamp without a boot, which every boot
//! trusts. A file without a stamp is trusted as well: it was synced on a file system without
//! attributes, or ZEO wrote it.
//!
//! A stamp has 48 bytes, 32 of the digest and 16 of the boot, so it fits into an ext4 inode.
//!
//! On a file that is being filled, the same attribute has the announced size in 8 bytes. The stamp
//! replaces it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;

use blobferry_protocol::Digest;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::os;

const ATTRIBUTE: &std::ffi::CStr = c"user.blobferry";

/// The identity of one boot of this machine, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// The boot in the stamp of a synced file, which every boot trusts.
    pub const ANY: BootId = BootId([0; 16]);

    /// Returns the current boot; `None` if the kernel does not report it.
    pub fn current() -> Option<BootId> {
        os::simulated!(simulation => Some(BootId(simulation.boot())));
        let uuid = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits = uuid.trim().replace('-', "");
        u128::from_str_radix(&digits, 16).ok().map(|number| BootId(number.to_be_bytes()))
    }
}

/// Whether a file under a final name has the right bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Trust {
    /// It has.
    Verified,
    /// It has if its bytes have this digest. `None` means that its stamp is of an unknown kind.
    Unverified(Option<Digest>),
}

/// Reads a file's stamp. `boot` is the current boot.
///
/// # Errors
/// Returns the file system's error.
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

/// Returns the digest in a file's stamp, whatever its boot; `None` if it has no stamp of a known
/// kind.
///
/// # Errors
/// Returns the file system's error.
pub fn digest(file: &File) -> io::Result<Option<Digest>> {
    let mut value = [0; 48];
    match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value[..]) {
        Ok(48) => Ok(value.first_chunk().copied().map(Digest)),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Stamps a file whose bytes have this digest.
///
/// # Errors
/// Returns the file system's error. The file does not have this stamp then.
pub fn write(file: &File, digest: Digest, boot: BootId) -> io::Result<()> {
    let value = [&digest.0[..], &boot.0[..]].concat();
    writable(file, || rustix::fs::fsetxattr(file, ATTRIBUTE, &value, XattrFlags::empty()))
}

/// Records the announced size on a file that is being filled.
///
/// # Errors
/// Returns the file system's error.
pub fn announce(file: &File, size: u64) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(file, ATTRIBUTE, &size.to_be_bytes(), XattrFlags::empty())?)
}

/// Returns the announced size of a file that is being filled, if it was recorded.
pub fn announced(file: &File) -> Option<u64> {
    let mut size = [0; 8];
    match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut size[..]) {
        Ok(8) => Some(u64::from_be_bytes(size)),
        // It has its stamp, so it is complete.
        Err(Errno::RANGE) => file.metadata().ok().map(|metadata| metadata.len()),
        _ => None,
    }
}

/// Removes a file's stamp, if it has one.
///
/// # Errors
/// Returns the file system's error.
pub fn remove(file: &File) -> io::Result<()> {
    match writable(file, || rustix::fs::fremovexattr(file, ATTRIBUTE)) {
        Err(error) if error.raw_os_error() == Some(Errno::NODATA.raw_os_error()) => Ok(()),
        done => done,
    }
}

/// Changes an attribute of a file that may be read-only. The file's mode decides about that, not
/// how it was opened.
///
/// # Errors
/// Returns the file system's error.
pub fn writable<T>(file: &File, change: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
    match change() {
        Err(Errno::ACCESS) => {}
        changed => return Ok(changed?),
    }
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    file.set_permissions(Permissions::from_mode(mode | 0o200))?;
    let changed = change();
    // If two threads do this at once, each may have found the other's mode.
    file.set_permissions(Permissions::from_mode(mode & !0o222))?;
    Ok(changed?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stamp_of_this_boot_is_trusted() {
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
    fn a_read_only_file_can_be_stamped() {
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
