//! Disk space of files: what a file takes, and how to reserve it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// The bytes that a file takes on the disk.
pub fn on_disk(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(512))
}

/// What the file system may need beside a file's bytes: its attributes, and the list of its pieces. ext4 needs a block
/// of 4096 bytes for 340 pieces; four blocks a piece is the worst that is thought of here.
pub fn slack(size: u64) -> u64 {
    (size / 1024).saturating_add(8 << 10)
}

/// Allocates `size` bytes of a file, from the offset `from` on. Its length stays: how many were written is still seen in it.
/// `false` where the file system can not do that, or does it in a way that can not be seen.
///
/// Not with `fs2::allocate`: on Linux that returns whatever the last error was instead of "disk full", and where
/// the file system cannot reserve it writes all the zeros itself.
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
