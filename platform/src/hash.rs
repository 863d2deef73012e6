//! Hashing of whole files.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use blobferry_protocol::Digest;

use crate::aligned_buf::AlignedBuf;

/// Returns the digest of all bytes of a file, and their number. Ignores the file's cursor.
///
/// # Errors
/// Returns the file system's error.
pub fn digest_of(file: &File) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    hash(file, &mut hasher)?;
    Ok((Digest(*hasher.finalize().as_bytes()), hasher.count()))
}

/// Hashes the bytes of a file from the offset `hasher.count()` to the end. Ignores the file's
/// cursor.
///
/// # Errors
/// Returns the file system's error.
pub fn hash(file: &File, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let mut buffer = AlignedBuf::new(256 << 10);
    loop {
        match file.read_at(&mut buffer, hasher.count()) {
            Ok(0) => return Ok(()),
            Ok(n) => _ = hasher.update(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
