//! A record: one small blob in a segment, as a head and the bytes.
//!
//! Nothing is synced, so after a crash or a power cut anything can be in the place of a record: a
//! part of it, zeros, or old bytes of the disk. So a record is verified whenever it is read. The
//! head has a checksum, the blob's id, and the digest of the bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use blobferry_protocol::{BlobId, Digest, Oid, Tid};
use bytes::Bytes;

/// The length of a head in bytes: magic, oid, tid, size, digest, checksum.
pub(crate) const HEAD: usize = 72;
const MAGIC: [u8; 8] = *b"blob-001";
const CHECKED: usize = 64;

/// The contents of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) blob: BlobId,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

impl Head {
    /// Appends the head's bytes.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        let begin = to.len();
        to.extend_from_slice(&MAGIC);
        for number in [self.blob.oid.0, self.blob.tid.0, self.size] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        to.extend_from_slice(&self.digest.0);
        let checksum = checksum(to.get(begin..).unwrap_or_default());
        to.extend_from_slice(&checksum);
    }

    /// Reads a head. Returns `None` if the bytes are no complete head.
    pub(crate) fn read(bytes: &[u8]) -> Option<Head> {
        let (checked, rest) = bytes.split_at_checked(CHECKED)?;
        let fields = checked.strip_prefix(&MAGIC)?;
        if rest.first_chunk()? != &checksum(checked) {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(*fields.get(at..)?.first_chunk()?));
        let blob = BlobId { oid: Oid(number(0)?), tid: Tid(number(8)?) };
        Some(Head { blob, size: number(16)?, digest: Digest(*fields.get(24..)?.first_chunk()?) })
    }

    /// Returns the length of the record in bytes.
    pub(crate) fn record_len(&self) -> u64 {
        self.size.saturating_add(HEAD as u64)
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    if let Some(first) = blake3::hash(bytes).as_bytes().first_chunk() {
        sum = *first;
    }
    sum
}

/// Returns the blob's bytes and their digest, if `record` is exactly its record.
pub(crate) fn open(blob: BlobId, record: Vec<u8>) -> Option<(Bytes, Digest)> {
    let head = Head::read(&record)?;
    let bytes = Bytes::from(record).split_off(HEAD);
    let whole = head.blob == blob
        && head.size == bytes.len() as u64
        && blake3::hash(&bytes).as_bytes() == &head.digest.0;
    whole.then_some((bytes, head.digest))
}

/// Returns the records of a segment and their offsets, in order. Skips damaged bytes.
pub(crate) fn all(file: &File) -> impl Iterator<Item = io::Result<(u64, Head)>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let mut head = [0; HEAD];
            match file.read_exact_at(&mut head, at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
                Err(error) => {
                    at = u64::MAX - HEAD as u64; // the iteration ends after an error
                    return Some(Err(error));
                }
                Ok(()) => {}
            }
            if let Some(found) = Head::read(&head) {
                let record = (at, found);
                at = at.saturating_add(found.record_len());
                return Some(Ok(record));
            }
            at = match next_magic(file, at + 1) {
                Ok(next) => next?,
                Err(error) => return Some(Err(error)),
            };
        }
    })
}

/// Returns the offset of the next possible head, from the offset `at` on.
fn next_magic(file: &File, mut at: u64) -> io::Result<Option<u64>> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let n = file.read_at(&mut piece, at)?;
        let read = piece.get(..n).unwrap_or_default();
        if let Some(found) = read.windows(MAGIC.len()).position(|window| window == MAGIC) {
            return Ok(Some(at + found as u64));
        }
        // The magic may begin in this piece, and end in the next one.
        match n.checked_sub(MAGIC.len() - 1) {
            None | Some(0) => return Ok(None),
            Some(passed) => at += passed as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn blob(n: u64) -> BlobId {
        BlobId { oid: Oid(n), tid: Tid(n + 1) }
    }

    fn record(n: u64, bytes: &[u8]) -> Vec<u8> {
        let digest = Digest(*blake3::hash(bytes).as_bytes());
        let mut record = Vec::new();
        Head { blob: blob(n), size: bytes.len() as u64, digest }.write(&mut record);
        record.extend_from_slice(bytes);
        record
    }

    #[test]
    fn a_damaged_record_is_never_opened() {
        for bytes in [&b""[..], b"small blob"] {
            let whole = record(1, bytes);
            assert_eq!(open(blob(1), whole.clone()).unwrap().0, bytes);
            assert!(open(blob(2), whole.clone()).is_none(), "it is another blob's");
            for at in 0..whole.len() {
                let mut wrong = whole.clone();
                wrong[at] ^= 1;
                assert!(open(blob(1), wrong).is_none(), "byte {at}");
                assert!(open(blob(1), whole[..at].to_vec()).is_none(), "{at} bytes");
            }
            assert!(open(blob(1), [&whole[..], b"x"].concat()).is_none());
        }
    }

    #[test]
    fn records_are_found_behind_torn_ones() {
        let mut file = tempfile::tempfile().unwrap();
        let torn = &record(2, &[7; 100_000])[..70_000];
        let (first, last) = (record(1, b"one"), record(3, b"three"));
        for bytes in [&first[..], torn, &last, &[0; 10_000], &MAGIC[..5]] {
            file.write_all(bytes).unwrap();
        }
        // The length in the head is wrong if the bytes are missing: the records that it covers are
        // only not listed.
        let zeros = &record(2, &[7; 100_000]).iter().map(|_| 0).collect::<Vec<u8>>()[..70_000];
        let mut lost = tempfile::tempfile().unwrap();
        for bytes in [&first[..], zeros, &last] {
            lost.write_all(bytes).unwrap();
        }
        let found: Vec<u64> = all(&lost).map(|found| found.unwrap().1.blob.oid.0).collect();
        assert_eq!(found, [1, 3]);
        assert_eq!(all(&file).map(|found| found.unwrap().1.blob.oid.0).take(2).collect::<Vec<_>>(), [1, 2]);
    }
}
