//! Records: what the catalog's objects look like in the store.
//!
//! A directory is a trie over the hashes of its names, so that it can hold a hundred thousand of them while every
//! record stays small and two writers seldom touch the same one. A small directory is one [`Directory::Leaf`]; a
//! leaf that grows past [`LEAF_NAMES`] becomes a [`Directory::Branch`] to sixteen new ones. A branch stays a branch:
//! an object of the trie, once there, is there until its directory is removed. That is what lets a writer change one
//! leaf without locking the way to it.
//!
//! A record is one byte that says the format, then postcard. Only what [`Record::encode`] would write is accepted.

use std::collections::BTreeMap;

use blobferry_protocol::Oid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::path::Name;

/// The format that is written, and the only one that is read.
const FORMAT: u8 = 1;

/// The longest record in bytes that is looked at: far above a full leaf of the longest names.
const MAX_RECORD: usize = 1 << 20;

/// The most names that a leaf has (but for one at the end of all hashes).
pub(crate) const LEAF_NAMES: usize = 128;

/// How many children a branch has: one for every value of four bits.
pub(crate) const FAN_OUT: usize = 16;

/// How many times a hash can be branched on.
pub(crate) const MAX_DEPTH: usize = blake3::OUT_LEN * 2;

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RecordError {
    /// Written by a later version, or not by the catalog.
    #[error("its format is not known: was it written by a newer blobferry?")]
    Format,
    /// Not what `encode` writes.
    #[error("its record is damaged")]
    Damaged,
    /// A directory where a file should be, or the other way round.
    #[error("its record is of the wrong kind")]
    Kind,
}

/// The record of one object of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// A part of a directory.
    Directory(Directory),
    /// A file; its bytes are the object's blob.
    File(FileRecord),
}

/// One object of a directory's trie. The directory's own oid is that of the top one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Directory {
    /// Names, in order.
    Leaf(BTreeMap<Name, Entry>),
    /// Where the names are, by the next four bits of their hash.
    Branch([Oid; FAN_OUT]),
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// A file: every revision of its contents is a revision of this object.
    File {
        /// The file's object.
        oid: Oid,
    },
    /// Another directory.
    Directory {
        /// The top of its trie.
        oid: Oid,
    },
}

/// What is kept of a file beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Can it be executed?
    pub(crate) executable: bool,
    /// When it was last changed where it came from: nanoseconds since 1970 (UTC).
    pub(crate) modified: i64,
}

impl Record {
    /// The record's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "postcard fails only for types without a known shape")]
        postcard::to_extend(self, vec![FORMAT]).expect("a record is always encodable")
    }

    /// The record that these bytes are.
    ///
    /// # Errors
    /// [`RecordError`] for anything that [`Record::encode`] does not write: names out of order or twice, too.
    pub(crate) fn decode(data: &[u8]) -> Result<Record, RecordError> {
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

/// Which child of a branch at `depth` (0 is the top of the directory) a name is under.
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
    fn records_have_these_bytes_for_ever() {
        assert_eq!(leaf(&["a", "b"]).encode(), [1, 0, 0, 2, 1, b'a', 0, 1, 1, b'b', 0, 2]);
        let branch = Record::Directory(Directory::Branch(std::array::from_fn(|i| Oid(i as u64))));
        assert_eq!(branch.encode(), [1, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let file = Record::File(FileRecord { executable: true, modified: -1 });
        assert_eq!(file.encode(), [1, 1, 1, 1]);
        assert_eq!(child_of(&name("a"), 0), 1, "BLAKE3 of `a` begins with 17");
        assert_eq!(child_of(&name("a"), 1), 7);
    }

    #[test]
    fn names_out_of_order_twice_or_impossible_are_damage() {
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
    fn a_full_leaf_of_the_longest_names_is_far_below_the_limit() {
        let entries = (0..LEAF_NAMES as u64)
            .map(|i| (name(&format!("{i:0>255}")), Entry::Directory { oid: Oid(u64::MAX - i) }))
            .collect();
        let data = Record::Directory(Directory::Leaf(entries)).encode();
        assert!(data.len() < MAX_RECORD / 16, "{} bytes", data.len());
        assert!(Record::decode(&data).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(mut data: Vec<u8>, format: bool) {
            if let Some(first) = data.first_mut().filter(|_| format) {
                *first = FORMAT;
            }
            if let Ok(record) = Record::decode(&data) {
                prop_assert_eq!(record.encode(), data);
            }
        }

        #[test]
        fn leaves_come_back_as_they_were(names in prop::collection::btree_map("[^/\\pC]{1,30}", any::<u64>(), 0..40)) {
            let entries = names
                .into_iter()
                .filter_map(|(name, oid)| Some((name.parse().ok()?, Entry::File { oid: Oid(oid) })))
                .collect();
            let record = Record::Directory(Directory::Leaf(entries));
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }
}
