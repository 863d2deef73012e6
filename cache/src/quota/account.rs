//! The usage file: how many bytes the files of a cache occupy, and how many they may. All processes
//! share it.
//!
//! It is the file `tmp/.room`, which is read and changed under a lock on itself. The number of
//! bytes is raised before a file grows, and lowered after a file was removed. So a process that
//! dies in between leaves it too high, never too low, and a recount corrects it.
//!
//! Bytes written before the machine's last start may or may not have reached the disk: they are
//! recounted as well.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::lock::FileLock;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::blobdir::integrity::BootId;

/// The format of the record: eight bytes each of magic, limit, bytes used, recounts and accuracy;
/// the sixteen bytes of the boot; a checksum. The checksum protects the limit of a torn record.
const MAGIC: [u8; 8] = *b"room-001";
const LENGTH: usize = 56;
const CHECKSUM: usize = 8;

/// Describes an error of the usage file at `path`.
pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    WriteError::space("keep account of the room in", path, 0)
}

/// The usage file, locked. Dropped, it is unlocked.
#[derive(Debug)]
pub(crate) struct UsageFile {
    file: FileLock,
    record: Record,
}

/// The contents of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    limit: Option<u64>,
    used: u64,
    recounts: u64,
    accuracy: Accuracy,
    boot: BootId,
}

/// How exact the number of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Accuracy {
    /// It is what the living processes use.
    Exact,
    /// It may be too high: a process died.
    MayBeHigh,
    /// It is not known.
    Unknown,
}

impl UsageFile {
    /// Locks the usage file, creates it if it is missing, and reads it.
    pub(crate) fn open(path: &Path, boot: BootId) -> io::Result<UsageFile> {
        let file = FileLock::exclusive(path)?;
        let mut bytes = [0; LENGTH + CHECKSUM];
        let record = match file.file().read_exact_at(&mut bytes, 0) {
            Ok(()) => Record::decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
        let unknown = Record { limit: None, used: 0, recounts: 0, accuracy: Accuracy::Unknown, boot };
        let mut record = record.unwrap_or(unknown);
        if record.boot != boot {
            record.accuracy = Accuracy::Unknown;
        }
        record.boot = boot;
        Ok(UsageFile { file, record })
    }

    /// Returns how many bytes the files may occupy; `None` if only the disk limits them.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.record.limit
    }

    /// Returns how many bytes the files occupy, or are about to.
    pub(crate) fn used(&self) -> u64 {
        self.record.used
    }

    /// Returns the number of recounts so far. A recount includes what reservations occupied at that
    /// time.
    pub(crate) fn recounts(&self) -> u64 {
        self.record.recounts
    }

    /// Returns how exact the number of bytes is.
    pub(crate) fn accuracy(&self) -> Accuracy {
        self.record.accuracy
    }

    /// Raises the number of bytes: files are about to grow.
    pub(crate) fn add(&mut self, bytes: u64) -> io::Result<()> {
        self.write(Record { used: self.record.used.saturating_add(bytes), ..self.record })
    }

    /// Lowers the number of bytes: files have shrunk or gone.
    pub(crate) fn sub(&mut self, bytes: u64) -> io::Result<()> {
        self.write(Record { used: self.record.used.saturating_sub(bytes), ..self.record })
    }

    /// Sets the number of bytes that a recount has found.
    pub(crate) fn recounted(&mut self, used: u64) -> io::Result<()> {
        let recounts = self.record.recounts.wrapping_add(1);
        self.write(Record { used, recounts, accuracy: Accuracy::Exact, ..self.record })
    }

    /// Records that the number of bytes may be too high.
    pub(crate) fn set_inexact(&mut self) -> io::Result<()> {
        self.write(Record { accuracy: self.record.accuracy.max(Accuracy::MayBeHigh), ..self.record })
    }

    /// Sets the limit for all processes, and syncs it to the disk.
    pub(crate) fn set_limit(&mut self, limit: Option<u64>) -> io::Result<()> {
        if limit == self.record.limit {
            return Ok(());
        }
        self.write(Record { limit, ..self.record })?;
        self.file.file().sync_all()
    }

    fn write(&mut self, record: Record) -> io::Result<()> {
        self.file.file().write_all_at(&record.encode(), 0)?;
        self.record = record;
        Ok(())
    }
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH + CHECKSUM);
        bytes.extend_from_slice(&MAGIC);
        for number in
            [self.limit.unwrap_or(u64::MAX), self.used, self.recounts, u64::from(self.accuracy as u8)]
        {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.boot.0);
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    fn decode(bytes: &[u8; LENGTH + CHECKSUM]) -> Option<Record> {
        let (body, sum) = bytes.split_at(LENGTH);
        if body.strip_prefix(&MAGIC).is_none() || checksum(body) != sum {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(*body.get(at..)?.first_chunk()?));
        let accuracy = match number(32)? {
            0 => Accuracy::Exact,
            1 => Accuracy::MayBeHigh,
            _ => Accuracy::Unknown,
        };
        Some(Record {
            limit: number(8).filter(|limit| *limit != u64::MAX),
            used: number(16)?,
            recounts: number(24)?,
            accuracy,
            boot: BootId(*body.get(40..)?.first_chunk()?),
        })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut sum);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NOW: BootId = BootId([1; 16]);

    #[test]
    fn a_record_is_read_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".room");
        let mut usage = UsageFile::open(&path, NOW).unwrap();
        assert_eq!((usage.limit(), usage.accuracy()), (None, Accuracy::Unknown));
        usage.recounted(100).unwrap();
        usage.add(50).unwrap();
        usage.sub(20).unwrap();
        usage.set_limit(Some(1000)).unwrap();
        usage.set_inexact().unwrap();
        drop(usage);
        let usage = UsageFile::open(&path, NOW).unwrap();
        let found = (usage.limit(), usage.used(), usage.recounts(), usage.accuracy());
        assert_eq!(found, (Some(1000), 130, 1, Accuracy::MayBeHigh));
        drop(usage);
        let usage = UsageFile::open(&path, BootId([2; 16])).unwrap();
        assert_eq!((usage.limit(), usage.accuracy()), (Some(1000), Accuracy::Unknown), "after a boot");
    }

    #[test]
    fn a_torn_record_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".room");
        let mut usage = UsageFile::open(&path, NOW).unwrap();
        usage.recounted(100).unwrap();
        usage.set_limit(Some(1000)).unwrap();
        drop(usage);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            fs::write(&path, torn).unwrap();
            let usage = UsageFile::open(&path, NOW).unwrap();
            assert_eq!((usage.limit(), usage.accuracy()), (None, Accuracy::Unknown), "byte {at}");
        }
    }
}
