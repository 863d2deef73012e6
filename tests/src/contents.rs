//! The bytes that a record or a blob must have. They follow from the transaction that stored them.

use blobferry_protocol::{Digest, Oid, TxnId};

/// What bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object's record.
    Record,
    /// An object's blob.
    Blob,
}

/// Returns the bytes that a transaction stores for an object. No two parts of them are alike, and
/// no two contents.
#[must_use]
pub fn bytes(txn: TxnId, oid: Oid, kind: Kind, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&txn.0).update(&oid.0.to_le_bytes()).update(&[kind as u8]);
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Returns the digest of bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}
