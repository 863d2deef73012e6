//! The names of a blob and of its bucket's lock below the directory, made without the heap: a cache that is asked for a
//! blob does little else than to open these.

use std::ffi::CStr;
use std::fmt::{self, Write};

use blobferry_protocol::BlobId;

/// As long as the longest one, `996/18502247817160533.ffffffffffffffff.blob`, with its end and something to spare.
const LENGTH: usize = 56;

/// A path in the directory of blobs.
#[derive(Debug)]
pub(crate) struct Name {
    /// Ends with zeros, at least one.
    bytes: [u8; LENGTH],
    len: usize,
}

impl Name {
    /// A blob's.
    pub(crate) fn of(blob: BlobId) -> Name {
        let (bucket, quotient) = (blob.bucket(), blob.oid.0 / BlobId::BUCKETS);
        Name::new(format_args!("{bucket}/{quotient}.{}.blob", blob.tid))
    }

    /// That of the lock of a bucket.
    pub(crate) fn of_lock(bucket: u64) -> Name {
        Name::new(format_args!("{bucket}/.lock"))
    }

    fn new(text: fmt::Arguments<'_>) -> Name {
        let mut name = Name { bytes: [0; LENGTH], len: 0 };
        // It can not be too long.
        _ = name.write_fmt(text);
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
                let lock = format!("{}/.lock", blob.bucket());
                assert_eq!(Name::of_lock(blob.bucket()).as_c_str().to_str().unwrap(), lock);
            }
        }
    }
}
