//! The encoding of the catalog's objects in the store.
//!
//! A directory is a trie over the hashes of its names. It holds 100,000 names while every record
//! stays small, and two writers seldom write the same record. A small directory is one
//! [`Directory::Leaf`]. A leaf that grows beyond [`LEAF_NAMES`] becomes a [`Directory::Branch`] to
//! 16 new leaves. **An object of a trie exists until its directory is removed.** A branch never
//! becomes a leaf again; therefore a writer can change one leaf without locking the path to it.
//!
//! A record is one byte for the format, then postcard. Only what [`Record::encode`] would write is
//! accepted.

use std::collections::BTreeMap;

use blobferry_protocol::Oid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::path::Name;

/// The only format that is written and read.
const FORMAT: u8 = 1;

/// The longest record in bytes that is decoded. A full leaf of the longest names is far shorter.
const MAX_RECORD: usize = 1 << 20;

/// The most names that a leaf has. Only a leaf at [`MAX_DEPTH`] can have more.
pub(crate) const LEAF_NAMES: usize = 128;

/// The number of children of a branch: one for every value of four bits.
pub const FAN_OUT: usize = 16;

/// The depth of a trie at which a hash has no more bits.
pub(crate) const MAX_DEPTH: usize = blake3::OUT_LEN * 2;

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A later version has written it, or another program.
    #[error("its format is not known: was it written by a newer blobferry?")]
    Format,
    /// It is not what [`Record::encode`] writes.
    #[error("its record is damaged")]
    Damaged,
    /// It is a directory in the place of a file, or a file in the place of a directory.
    #[error("its record is of the wrong kind")]
    Kind,
}

/// The record of one object of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A part of a directory.
    Directory(Directory),
    /// A file; its bytes are the object's blob.
    File(FileRecord),
}

/// One object of a directory's trie. The directory's own oid is that of the top one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Directory {
    /// Names, in order.
    Leaf(BTreeMap<Name, Entry>),
    /// The parts that contain the names, by the next four bits of the names' hashes.
    Branch([Oid; FAN_OUT]),
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A file. Every revision of its contents is a revision of this object.
    File {
        /// The file's object.
        oid: Oid,
    },
    /// Another directory.
    Directory {
        /// The directory's object, which is the top of its trie.
        oid: Oid,
    },
}

/// The attributes of a file that are stored beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Whether the file is executable.
    pub executable: bool,
    /// The modification time of the source file, in nanoseconds since 1970 (UTC).
    pub modified: i64,
}

impl Record {
    /// Returns the record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "postcard fails only for types without a known shape")]
        postcard::to_extend(self, vec![FORMAT]).expect("a record is always encodable")
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// [`RecordError`] for anything that [`Record::encode`] does not write, for example names out
    /// of order.
    pub fn decode(data: &[u8]) -> Result<Record, RecordError> {
        let (&format, body) = data.split_first().ok_or(RecordError::Damaged)?;
        if format != FORMAT {
            return Err(RecordError::Format);
        }
        if data.len() > MAX_RECORD {
            return Err(RecordError::Damaged);
        }
        let record: Record = postcard::from_bytes(body).map_err(|_| RecordError::Damaged)?;
        if record.encode() == data { Ok(record) } else { Err(RecordError::Damaged) }
    }
}

/// Returns the child of a branch at `depth` that contains a name. Depth 0 is the top of the
/// directory.
pub(crate) fn child_of(name: &Name, depth: usize) -> usize {
    let hash = blake3::hash(name.as_str().as_bytes());
    let byte = hash.as_bytes().get(depth / 2).copied().unwrap_or(0);
    usize::from(if depth.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn leaf(names: &[&str]) -> Record {
        let entries = names.iter().zip(1..).map(|(text, oid)| (name(text), Entry::File { oid: Oid(oid) }));
        Record::Directory(Directory::Leaf(entries.collect()))
    }

    #[test]
    fn records_encode_to_fixed_bytes() {
        assert_eq!(leaf(&["a", "b"]).encode(), [1, 0, 0, 2, 1, b'a', 0, 1, 1, b'b', 0, 2]);
        let branch = Record::Directory(Directory::Branch(std::array::from_fn(|i| Oid(i as u64))));
        assert_eq!(branch.encode(), [1, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let file = Record::File(FileRecord { executable: true, modified: -1 });
        assert_eq!(file.encode(), [1, 1, 1, 1]);
        assert_eq!(child_of(&name("a"), 0), 1, "BLAKE3 of `a` begins with 17");
        assert_eq!(child_of(&name("a"), 1), 7);
    }

    #[test]
    fn unordered_duplicate_or_invalid_names_are_damage() {
        let good = leaf(&["a", "b"]).encode();
        for (at, byte) in [(9, b'a'), (5, b'c'), (5, b'/'), (5, 0), (3, 1), (3, 3), (1, 9)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Record::decode(&bad), Err(RecordError::Damaged), "byte {at} is {byte}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(Record::decode(&longer), Err(RecordError::Damaged));
        assert_eq!(Record::decode(&[]), Err(RecordError::Damaged));
        assert_eq!(Record::decode(&[2, 0, 0, 0]), Err(RecordError::Format));
    }

    #[test]
    fn full_leaf_is_far_below_the_record_limit() {
        let entries = (0..LEAF_NAMES as u64)
            .map(|i| (name(&format!("{i:0>255}")), Entry::Directory { oid: Oid(u64::MAX - i) }))
            .collect();
        let data = Record::Directory(Directory::Leaf(entries)).encode();
        assert!(data.len() < MAX_RECORD / 16, "{} bytes", data.len());
        assert!(Record::decode(&data).is_ok());
    }

    proptest! {
        #[test]
        fn decoded_records_encode_to_the_same_bytes(mut data: Vec<u8>, format: bool) {
            if let Some(first) = data.first_mut().filter(|_| format) {
                *first = FORMAT;
            }
            if let Ok(record) = Record::decode(&data) {
                prop_assert_eq!(record.encode(), data);
            }
        }

        #[test]
        fn leaves_survive_a_round_trip(names in prop::collection::btree_map("[^/\\pC]{1,30}", any::<u64>(), 0..40)) {
            let entries = names
                .into_iter()
                .filter_map(|(name, oid)| Some((name.parse().ok()?, Entry::File { oid: Oid(oid) })))
                .collect();
            let record = Record::Directory(Directory::Leaf(entries));
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }
}
