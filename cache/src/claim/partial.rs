//! The partial file of a blob that is being downloaded: one file, whose name only depends on the
//! blob.
//!
//! It is `tmp/partial/<oid>.<tid>.part`. Only the claim that leads the blob writes to it, or
//! removes it. In this process the in-flight table ensures that, between processes the lock of the
//! blob's bucket. So a process that takes over from a dead one, or reads along, just opens the
//! file.
//!
//! A partial file only grows, and its length is the number of its bytes. A download that begins
//! again creates another file of the same name. Whether the bytes are the blob's is known only when
//! all of them have come.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blobferry_protocol::BlobId;
use rustix::fs::OFlags;

use crate::quota::reservation::CacheQuota;
use blobferry_platform::blobdir::BlobWriter;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::blobdir::layout::{Layout, create_dir, partial_name};
use blobferry_platform::blobdir::temp_file::TempFile;
use blobferry_platform::os::files;

/// The place of a blob's partial file, which may exist or not.
#[derive(Debug)]
pub(crate) struct Partial {
    dir: PathBuf,
    path: PathBuf,
}

impl Partial {
    pub(crate) fn of(layout: &Layout, blob: BlobId) -> Partial {
        let dir = Partial::dir_of(layout);
        let path = dir.join(partial_name(blob));
        Partial { dir, path }
    }

    fn dir_of(layout: &Layout) -> PathBuf {
        layout.tmp().join("partial")
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory of all partial files, and creates it if it is missing.
    pub(crate) fn dir(&self) -> io::Result<&Path> {
        create_dir(&self.dir, 0o700)?;
        Ok(&self.dir)
    }

    /// Returns the number of bytes that an earlier download left.
    pub(crate) fn len(&self) -> u64 {
        fs::symlink_metadata(&self.path).map_or(0, |found| if found.is_file() { found.len() } else { 0 })
    }

    /// Opens the file for reading.
    pub(crate) fn open(&self) -> io::Result<File> {
        self.open_as(OpenOptions::new().read(true))
    }

    /// Creates an empty file, in place of an existing one.
    pub(crate) fn create(&self, quota: Option<&CacheQuota>) -> Result<BlobWriter, WriteError> {
        self.dir().map_err(WriteError::io("create", &self.dir))?;
        self.remove(quota)?;
        loop {
            let file = OpenOptions::new().read(true).append(true).create_new(true).open(&self.path);
            match (file.map_err(WriteError::space("create", &self.path, 0)), quota) {
                (Err(WriteError::NoSpace { .. }), Some(quota)) if quota.evict_one()? => {}
                (file, quota) => return Ok(BlobWriter::new(self.adopt(file?, quota)?)),
            }
        }
    }

    fn adopt(&self, file: File, quota: Option<&CacheQuota>) -> Result<TempFile, WriteError> {
        let file = TempFile::adopt(file, &self.path)?;
        match quota {
            Some(quota) => {
                let reservation = quota.reserve(file.file())?;
                Ok(file.with_reservation(reservation))
            }
            None => Ok(file),
        }
    }

    /// Continues with the existing file, and reads all of it. Fails if other users could write to
    /// it.
    pub(crate) fn resume(&self, quota: Option<&CacheQuota>) -> io::Result<BlobWriter> {
        let file = self.open_as(OpenOptions::new().read(true).append(true))?;
        let metadata = file.metadata()?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.nlink() != 1 {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "other users may write to it"));
        }
        let mut writer = BlobWriter::new(self.adopt(file, quota).map_err(io::Error::other)?);
        writer.hash_existing()?;
        Ok(writer)
    }

    /// Removes the file, if it exists.
    pub(crate) fn remove(&self, quota: Option<&CacheQuota>) -> Result<(), WriteError> {
        if let Some(quota) = quota.filter(|_| self.len() > 0) {
            return quota.remove(&self.path).map(drop);
        }
        match files::remove(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(WriteError::io("remove", &self.path)),
        }
    }

    /// Opens a regular file of that name, and nothing else: follows no link; a pipe does not block.
    fn open_as(&self, options: &mut OpenOptions) -> io::Result<File> {
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(careful.bits().cast_signed()).open(&self.path)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
        }
    }
}

/// Returns whether both files have at least `len` bytes, and these are equal.
pub(crate) fn same_beginning(one: &File, other: &File, len: u64) -> io::Result<bool> {
    const PIECE: usize = 64 << 10;
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < len {
        let n = usize::try_from(len - at).map_or(PIECE, |rest| rest.min(PIECE));
        let (Some(left), Some(right)) = (left.get_mut(..n), right.get_mut(..n)) else { return Ok(false) };
        for (file, piece) in [(one, &mut *left), (other, &mut *right)] {
            match file.read_exact_at(piece, at) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
                read => read?,
            }
        }
        if left != right {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::{Oid, Tid};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_a_regular_file_in_a_private_dir_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let partial =
            Partial::of(&Layout::open(dir.path()).unwrap(), BlobId { oid: Oid(0x1f), tid: Tid(0x2f) });
        assert!(partial.path().ends_with("tmp/partial/31.000000000000002f.part"), "{partial:?}");
        assert_eq!(partial.open().unwrap_err().kind(), ErrorKind::NotFound);
        drop(partial.create(None).unwrap());
        assert_eq!(fs::metadata(partial.dir().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);

        fs::write(dir.path().join("file"), "x").unwrap();
        symlink(dir.path().join("file"), partial.path()).unwrap();
        assert!(partial.open().is_err() && partial.resume(None).is_err());
        assert_eq!(partial.len(), 0);
        partial.remove(None).unwrap();
        fs::create_dir(partial.path()).unwrap();
        assert!(partial.open().is_err() && partial.resume(None).is_err());
        assert!(matches!(partial.create(None), Err(WriteError::Io { operation: "remove", .. })));
    }

    #[test]
    fn equal_beginnings_are_recognized() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            File::open(path).unwrap()
        };
        let bytes = vec![7; 200_000];
        let mut other = bytes.clone();
        other[150_000] = 8;
        let (one, other, short) = (file("1", &bytes), file("2", &other), file("3", &bytes[..100_000]));
        for (same, of, len) in [
            (true, &other, 0),
            (true, &other, 150_000),
            (false, &other, 150_001),
            (true, &short, 100_000),
            (false, &short, 100_001),
            (true, &one, 200_000),
            (false, &one, 200_001),
        ] {
            assert_eq!(same_beginning(&one, of, len).unwrap(), same, "{len}");
            assert_eq!(same_beginning(of, &one, len).unwrap(), same, "{len}");
        }
    }
}
