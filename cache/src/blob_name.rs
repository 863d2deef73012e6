//! The path of a blob's file below the directory, made without the heap.
//!
//! A hit in the cache costs little more than opening this path.

use std::ffi::CStr;
use std::fmt::{self, Write};

use blobferry_protocol::BlobId;

/// The length of the longest path, `996/18502247817160533.ffffffffffffffff.blob`, with a zero byte
/// and some reserve.
const LENGTH: usize = 56;

/// The path of a blob's file in the directory of blobs.
#[derive(Debug)]
pub(crate) struct Name {
    /// Ends with at least one zero byte.
    bytes: [u8; LENGTH],
    len: usize,
}

impl Name {
    pub(crate) fn of(blob: BlobId) -> Name {
        let mut name = Name { bytes: [0; LENGTH], len: 0 };
        let (bucket, quotient) = (blob.bucket(), blob.oid.0 / BlobId::BUCKETS);
        // The buffer is long enough for every blob.
        _ = write!(name, "{bucket}/{quotient}.{}.blob", blob.tid);
        name
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).filter(|_| end < LENGTH).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::{Oid, Tid};

    #[test]
    fn every_blob_has_the_path_of_the_layout() {
        for oid in [0, 1, 996, 997, 997 * 5 + 3, u64::MAX] {
            for tid in [0, 0xabc, u64::MAX] {
                let blob = BlobId { oid: Oid(oid), tid: Tid(tid) };
                let path = format!("{}/{}", blob.bucket(), blob.file_name());
                assert_eq!(Name::of(blob).as_c_str().to_str().unwrap(), path);
            }
        }
    }
}
