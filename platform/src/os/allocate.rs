//! Disk space of files: how much a file occupies, and how to reserve it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Returns the number of bytes that a file occupies on the disk.
///
/// # Errors
/// Returns the file system's error.
pub fn on_disk(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(512))
}

/// Returns how many bytes the file system may need beside the `size` bytes of a file, for
/// attributes and the list of extents. ext4 needs a block of 4096 bytes for 340 extents; this
/// allows for four blocks per extent.
pub fn slack(size: u64) -> u64 {
    (size / 1024).saturating_add(8 << 10)
}

/// Allocates `size` bytes of a file from the offset `from` on. The file keeps its length, which
/// tells how many bytes were written. `free` is the number of free bytes on the disk, if it is
/// known.
///
/// Returns `false` if the file system cannot allocate in advance, or its allocation cannot be seen.
///
/// This does not use `fs2::allocate`: on Linux it returns the last error of the thread instead of
/// "disk full". If the file system cannot allocate, it writes all the zeros itself.
///
/// # Errors
/// Returns the file system's error; [`Errno::NOSPC`] if `free` is less than what is missing.
pub fn allocate(file: &File, from: u64, size: u64, free: Option<u64>) -> Result<bool, Errno> {
    if size == 0 {
        return Ok(true);
    }
    let blocks = || on_disk(file).unwrap_or_default();
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from, size) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let missing = size.saturating_sub(blocks());
                return if free.is_some_and(|free| free < missing) { Err(Errno::NOSPC) } else { Ok(false) };
            }
            Err(error) => return Err(error),
            Ok(()) => return Ok(blocks() >= size),
        }
    }
}
