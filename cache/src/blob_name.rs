//! A blob's name below the directory, made without the heap: a cache that is asked for a blob that it has does little else
//! than to open this.

use std::ffi::CStr;
use std::fmt::{self, Write};

use blobferry_protocol::BlobId;

/// As long as the longest one, `996/18502247817160533.ffffffffffffffff.blob`, with its end and something to spare.
const LENGTH: usize = 56;

/// The path of a blob's file in the directory of blobs.
#[derive(Debug)]
pub(crate) struct Name {
    /// Ends with zeros, at least one.
    bytes: [u8; LENGTH],
    len: usize,
}

impl Name {
    pub(crate) fn of(blob: BlobId) -> Name {
        let mut name = Name { bytes: [0; LENGTH], len: 0 };
        let (bucket, quotient) = (blob.bucket(), blob.oid.0 / BlobId::BUCKETS);
        // It can not be too long.
        _ = write!(name, "{bucket}/{quotient}.{}.blob", blob.tid);
        name
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let upto = self.len + text.len();
        let room = self.bytes.get_mut(self.len..upto).filter(|_| upto < LENGTH).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len = upto;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::{Oid, Tid};

    #[test]
    fn it_is_the_path_below_the_directory_for_every_blob() {
        for oid in [0, 1, 996, 997, 997 * 5 + 3, u64::MAX] {
            for tid in [0, 0xabc, u64::MAX] {
                let blob = BlobId { oid: Oid(oid), tid: Tid(tid) };
                let path = format!("{}/{}", blob.bucket(), blob.file_name());
                assert_eq!(Name::of(blob).as_c_str().to_str().unwrap(), path);
            }
        }
    }
}
