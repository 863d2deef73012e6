//! The write set: what one open transaction has stored. Its index is in memory, all else in a
//! spool.
//!
//! Records and small blobs are appended to one unnamed file, of which nothing is left if the
//! process dies. Per object, only its base and an offset in the spool are in memory, so a large
//! transaction needs little of it.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use blobferry_protocol::{BlobInfo, Digest, Oid, RequestError, Tid};
use tempfile::SpooledTempFile;

use crate::errors::disk_error;
use crate::staging::{Quota, QuotaPermit, Staged, StagedContent, StagedFile};

/// An unnamed file for the records and small blobs of one transaction.
#[derive(Debug)]
pub(crate) struct Spool {
    file: SpooledTempFile,
    dir: PathBuf,
}

impl Spool {
    /// Makes a spool in memory, which moves to a file in `dir` once it is larger than `in_memory`
    /// bytes.
    pub(crate) fn new(in_memory: usize, dir: &Path) -> Spool {
        Spool { file: tempfile::spooled_tempfile_in(in_memory, dir), dir: dir.to_owned() }
    }

    /// Returns what a client sees of a failed spool.
    fn error(&self, operation: &str, error: &io::Error) -> RequestError {
        disk_error(&format!("{operation} a transaction's spool in"), &self.dir, error)
    }
}

/// The changes of one transaction, by object.
#[derive(Debug)]
pub(crate) struct WriteSet {
    index: BTreeMap<Oid, Change>,
    files: BTreeMap<Oid, StagedFile>,
    spool: Spool,
    /// The offset of the next entry. Bytes behind it are left over from a failed write.
    end: u64,
    max_objects: u64,
    quota: Quota,
    /// The bytes in the spool and in the files. It only grows, since replaced entries stay in the
    /// spool.
    permit: QuotaPermit,
}

#[derive(Clone, Copy, Debug)]
struct Change {
    base: Tid,
    /// The offset of the new revision's entry in the spool; `None` for a deletion.
    offset: Option<u64>,
}

/// One change, read back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) oid: Oid,
    pub(crate) base: Tid,
    /// The new revision; `None` for a deletion.
    pub(crate) body: Option<Body>,
}

/// A new revision's record and blob.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) data: Vec<u8>,
    pub(crate) blob: Option<(BlobInfo, Bytes)>,
}

/// A new blob's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Small(Vec<u8>),
    /// In a file: see [`WriteSet::take_file`].
    InFile,
}

/// The start of every entry in the spool. The record follows, then a small blob.
struct Header {
    data: u64,
    kind: u8,
    blob: BlobInfo,
}

impl Header {
    const LEN: usize = 8 + 1 + 8 + 32;
    const NO_BLOB: u8 = 0;
    const SMALL: u8 = 1;
    const IN_FILE: u8 = 2;

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.data.to_le_bytes())?;
        to.write_all(&[self.kind])?;
        to.write_all(&self.blob.size.to_le_bytes())?;
        to.write_all(&self.blob.digest.0)
    }

    fn read(from: &mut impl Read) -> io::Result<Header> {
        let (mut data, mut kind, mut size, mut digest) = ([0; 8], [0; 1], [0; 8], [0; 32]);
        from.read_exact(&mut data)?;
        from.read_exact(&mut kind)?;
        from.read_exact(&mut size)?;
        from.read_exact(&mut digest)?;
        let blob = BlobInfo { size: u64::from_le_bytes(size), digest: Digest(digest) };
        Ok(Header { data: u64::from_le_bytes(data), kind: kind[0], blob })
    }
}

impl WriteSet {
    pub(crate) fn new(spool: Spool, max_objects: u64, quota: &Quota) -> Result<WriteSet, RequestError> {
        let (index, files, quota) = (BTreeMap::new(), BTreeMap::new(), quota.clone());
        let permit = quota.take(0)?;
        Ok(WriteSet { index, files, spool, end: 0, max_objects, quota, permit })
    }

    /// Stores a revision. It replaces an earlier change of the object.
    pub(crate) fn put(
        &mut self,
        oid: Oid,
        base: Tid,
        data: &[u8],
        blob: Option<Staged>,
    ) -> Result<(), RequestError> {
        self.check_count(oid)?;
        let mut permit = self.quota.take(data.len() as u64)?;
        let none = BlobInfo { size: 0, digest: Digest([0; 32]) };
        let (info, kind, bytes, file) = match blob {
            None => (none, Header::NO_BLOB, Vec::new(), None),
            Some(staged) => {
                permit.join(self.quota.claim(staged.permit)?);
                match staged.content {
                    StagedContent::Bytes(bytes) => (staged.info, Header::SMALL, bytes, None),
                    StagedContent::File(file) => (staged.info, Header::IN_FILE, Vec::new(), Some(file)),
                }
            }
        };
        let header = Header { data: data.len() as u64, kind, blob: info };
        let offset =
            self.append(&header, data, &bytes).map_err(|error| self.spool.error("write to", &error))?;
        self.permit.join(permit);
        self.index.insert(oid, Change { base, offset: Some(offset) });
        match file {
            Some(file) => self.files.insert(oid, file),
            None => self.files.remove(&oid),
        };
        Ok(())
    }

    /// Stores a deletion. It replaces an earlier change of the object.
    pub(crate) fn delete(&mut self, oid: Oid, base: Tid) -> Result<(), RequestError> {
        self.check_count(oid)?;
        self.index.insert(oid, Change { base, offset: None });
        self.files.remove(&oid);
        Ok(())
    }

    /// Removes the change of an object, if there is one.
    pub(crate) fn take_back(&mut self, oid: Oid) {
        self.index.remove(&oid);
        self.files.remove(&oid);
    }

    /// Iterates over all objects in order, with the revisions that the changes were made from.
    pub(crate) fn bases(&self) -> impl Iterator<Item = (Oid, Tid)> {
        self.index.iter().map(|(oid, change)| (*oid, change.base))
    }

    /// Returns the highest oid with a change.
    pub(crate) fn last_oid(&self) -> Option<Oid> {
        self.index.last_key_value().map(|(oid, _)| *oid)
    }

    /// Returns the change of the first object behind `after`. Repeated calls return all in the
    /// order of oids.
    pub(crate) fn entry_after(&mut self, after: Option<Oid>) -> Result<Option<Entry>, RequestError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let Some((oid, change)) = self.index.range((from, Bound::Unbounded)).next() else { return Ok(None) };
        let (oid, Change { base, offset }) = (*oid, *change);
        let body = match offset {
            Some(offset) => Some(self.read(offset).map_err(|error| self.spool.error("read", &error))?),
            None => None,
        };
        Ok(Some(Entry { oid, base, body }))
    }

    /// Takes the file of an object's new blob, if it is in one.
    #[cfg(feature = "sqlite")]
    pub(crate) fn take_file(&mut self, oid: Oid) -> Option<StagedFile> {
        self.files.remove(&oid)
    }

    fn check_count(&self, oid: Oid) -> Result<(), RequestError> {
        let actual = self.index.len() as u64 + 1;
        if actual > self.max_objects && !self.index.contains_key(&oid) {
            let what = "objects in one transaction".to_owned();
            return Err(RequestError::Limit { what, limit: self.max_objects, actual });
        }
        Ok(())
    }

    fn append(&mut self, header: &Header, data: &[u8], bytes: &[u8]) -> io::Result<u64> {
        let offset = self.end;
        self.spool.file.seek(SeekFrom::Start(offset))?;
        let mut head = Vec::with_capacity(Header::LEN);
        header.write(&mut head)?;
        self.spool.file.write_all(&head)?;
        self.spool.file.write_all(data)?;
        self.spool.file.write_all(bytes)?;
        self.end = offset + (head.len() + data.len() + bytes.len()) as u64;
        Ok(offset)
    }

    fn read(&mut self, offset: u64) -> io::Result<Body> {
        self.spool.file.seek(SeekFrom::Start(offset))?;
        let mut head = [0; Header::LEN];
        self.spool.file.read_exact(&mut head)?;
        let header = Header::read(&mut head.as_slice())?;
        let mut take = |len: u64| {
            let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            self.spool.file.read_exact(&mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        let data = take(header.data)?;
        let blob = match header.kind {
            Header::SMALL => Some((header.blob, Bytes::Small(take(header.blob.size)?))),
            Header::IN_FILE => Some((header.blob, Bytes::InFile)),
            _ => None,
        };
        Ok(Body { data, blob })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_set(quota: &Quota) -> WriteSet {
        WriteSet::new(Spool::new(16, &std::env::temp_dir()), 3, quota).unwrap()
    }

    fn small(quota: &Quota, bytes: &[u8]) -> Staged {
        let permit = Some(quota.take(bytes.len() as u64).unwrap());
        Staged { permit, ..Staged::from_bytes(bytes.to_vec(), Digest([7; 32])) }
    }

    fn all(changes: &mut WriteSet) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(entry) = changes.entry_after(entries.last().map(|entry| entry.oid)).unwrap() {
            entries.push(entry);
        }
        entries
    }

    #[test]
    fn the_last_store_counts_and_entries_come_in_order() {
        let quota = Quota::new(u64::MAX);
        let mut changes = write_set(&quota);
        changes.put(Oid(2), Tid(1), b"old", Some(small(&quota, b"old blob"))).unwrap();
        changes.delete(Oid(3), Tid(9)).unwrap();
        changes.put(Oid(1), Tid::ZERO, b"with a blob", Some(small(&quota, b"blob"))).unwrap();
        changes.put(Oid(2), Tid(5), b"new, behind the limit of memory", None).unwrap();
        let entries = all(&mut changes);
        assert_eq!(entries.iter().map(|e| (e.oid.0, e.base.0)).collect::<Vec<_>>(), [(1, 0), (2, 5), (3, 9)]);
        let first = entries[0].body.as_ref().unwrap();
        assert_eq!(first.data, b"with a blob");
        assert!(
            matches!(&first.blob, Some((info, Bytes::Small(bytes))) if info.size == 4 && bytes == b"blob")
        );
        let second = Body { data: b"new, behind the limit of memory".to_vec(), blob: None };
        assert_eq!(entries[1].body, Some(second));
        assert_eq!(entries[2].body, None);
        drop(changes);
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn a_replaced_or_taken_back_blob_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(u64::MAX);
        let mut names = 0..;
        let mut staged = || {
            let path = dir.path().join(names.next().unwrap().to_string());
            std::fs::write(&path, b"blob").unwrap();
            let info = BlobInfo { size: 4, digest: Digest([7; 32]) };
            Staged { permit: Some(quota.take(4).unwrap()), ..Staged::from_file(path, info) }
        };
        let files = || std::fs::read_dir(dir.path()).unwrap().count();
        let mut changes = write_set(&quota);
        for oid in 1..4 {
            changes.put(Oid(oid), Tid::ZERO, b"", Some(staged())).unwrap();
        }
        changes.put(Oid(1), Tid::ZERO, b"", None).unwrap();
        changes.take_back(Oid(2));
        assert_eq!(files(), 1);
        changes.put(Oid(3), Tid::ZERO, b"", Some(staged())).unwrap();
        assert_eq!(files(), 1);
        drop(changes);
        assert_eq!(files(), 0);
    }

    #[test]
    fn limits_are_typed_errors() {
        let quota = Quota::new(10);
        let mut changes = write_set(&quota);
        for oid in 0..3 {
            changes.put(Oid(oid), Tid::ZERO, b"", None).unwrap();
        }
        assert!(matches!(
            changes.put(Oid(3), Tid::ZERO, b"", None),
            Err(RequestError::Limit { limit: 3, .. })
        ));
        assert!(matches!(
            changes.put(Oid(1), Tid::ZERO, &[0; 11], None),
            Err(RequestError::Limit { limit: 10, .. })
        ));
        changes.put(Oid(1), Tid::ZERO, &[0; 10], None).unwrap();
    }
}
