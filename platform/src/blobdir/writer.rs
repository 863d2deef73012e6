//! A file of blob bytes that is being filled: reserved, written in order, hashed on the way,
//! checked at the end.
//!
//! It is a temporary file until it gets its final name, and is removed when it is dropped. So no
//! reader can mistake a part for the whole.

use std::fs::File;
use std::io;
use std::path::Path;

use blobferry_protocol::Digest;
use blobferry_protocol::planted::{Bug, planted};

use crate::blobdir::error::WriteError;
use crate::blobdir::integrity;
use crate::blobdir::temp_file::TempFile;
use crate::hash::{digest_of, hash};
use crate::os::files;

/// A file of blob bytes that is being filled. Dropped, it is removed.
///
/// # Example
/// ```
/// use blobferry_platform::blobdir::{BlobWriter, WriteError};
///
/// let dir = tempfile::tempdir()?;
/// let mut writer = BlobWriter::create(dir.path(), 11)?;
/// writer.write(b"hello ")?;
/// writer.write(b"world")?;
/// assert!(matches!(writer.write(b"!"), Err(WriteError::TooLong { size: 11, found: 12 })));
///
/// let file = writer.complete()?;
/// file.persist(&dir.path().join("greeting"))?;
/// assert_eq!(std::fs::read(dir.path().join("greeting"))?, b"hello world");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BlobWriter {
    file: TempFile,
    /// The number of bytes expected, if it is known.
    size: Option<u64>,
    written: u64,
    /// Boxed: it has 2 KiB.
    hasher: Box<blake3::Hasher>,
}

impl BlobWriter {
    /// Creates a file in `dir` under a unique name, for exactly `size` bytes. Reserves disk space
    /// for all of them if the file system can.
    ///
    /// # Errors
    /// Returns [`WriteError::NoSpace`] if the disk is too full for `size` bytes;
    /// [`WriteError::Io`].
    pub fn create(dir: &Path, size: u64) -> Result<BlobWriter, WriteError> {
        let mut writer = BlobWriter::create_unsized(dir)?;
        writer.expect(size)?;
        Ok(writer)
    }

    /// Creates a file in `dir` under a unique name, for any number of bytes.
    ///
    /// # Errors
    /// Returns [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn create_unsized(dir: &Path) -> Result<BlobWriter, WriteError> {
        TempFile::create(dir).map(BlobWriter::new)
    }

    /// Fills a file that is open for reading, and for writing at its end.
    pub fn new(file: TempFile) -> BlobWriter {
        BlobWriter { file, size: None, written: 0, hasher: Box::default() }
    }

    /// Reads and hashes the bytes that the file has already. They are the blob's first bytes.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn hash_existing(&mut self) -> io::Result<()> {
        hash(self.file.file(), &mut self.hasher)?;
        self.written = self.hasher.count();
        Ok(())
    }

    /// Sets the number of bytes expected in all, and reserves space for those that are still to
    /// come.
    ///
    /// # Errors
    /// Returns [`WriteError::Full`], [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn expect(&mut self, size: u64) -> Result<(), WriteError> {
        self.file.reserve(size)?;
        self.size = Some(size);
        Ok(())
    }

    /// Records the expected size on the file, for processes that read along. Does nothing on a file
    /// system without attributes.
    pub fn announce(&self) {
        if let Some(size) = self.size {
            _ = integrity::announce(self.file.file(), size);
        }
    }

    /// Returns the number of bytes expected in all, if it is known.
    pub fn expected(&self) -> Option<u64> {
        self.size
    }

    /// Leaves the written bytes under the temporary name, and returns the rest of the reserved
    /// space.
    pub fn retain_partial(self) {
        // Truncation returns the space reserved behind the end. If it fails, the space stays
        // reserved.
        _ = self.file.file().set_len(self.written);
        self.file.retain();
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// Returns [`WriteError::TooLong`], with nothing written; [`WriteError::Full`],
    /// [`WriteError::NoSpace`] and [`WriteError::Io`], after which the writer can only be dropped.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let found = self.written.saturating_add(bytes.len() as u64);
        if let Some(size) = self.size
            && found > size
        {
            return Err(WriteError::TooLong { size, found });
        }
        let needed = bytes.len() as u64;
        self.file.grow(found)?;
        files::write(self.file.file(), bytes).map_err(WriteError::space(
            "write to",
            self.file.path(),
            needed,
        ))?;
        self.hasher.update(bytes);
        self.written = found;
        Ok(())
    }

    /// Opens the file once more, for reading, while it is being filled.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn open_again(&self) -> io::Result<File> {
        self.file.open_again()
    }

    /// Returns the digest of the bytes that were written so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// Returns the number of bytes written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Ends the file: all bytes have come.
    ///
    /// # Errors
    /// Returns [`WriteError::TooShort`].
    pub fn complete(self) -> Result<BlobFile, WriteError> {
        if let Some(size) = self.size
            && self.written < size
        {
            return Err(WriteError::TooShort { size, found: self.written });
        }
        let digest = self.digest();
        Ok(BlobFile { file: self.file, size: self.written, digest })
    }

    /// Ends the file, whose bytes must have the digest `expected`.
    ///
    /// # Errors
    /// Returns [`WriteError::TooShort`] and [`WriteError::Digest`].
    pub fn complete_checked(self, expected: Digest) -> Result<BlobFile, WriteError> {
        let file = self.complete()?;
        match file.digest == expected || planted(Bug::ForgetDigestCheck) {
            true => Ok(file),
            false => Err(WriteError::Digest { expected, found: file.digest }),
        }
    }
}

/// All bytes of a blob in a temporary file. Dropped, it is removed.
#[derive(Debug)]
pub struct BlobFile {
    /// The file, under its temporary name.
    pub file: TempFile,
    size: u64,
    digest: Digest,
}

impl BlobFile {
    /// Adopts an existing temporary file: `file`, open for reading, under the name `path`. Reads
    /// and hashes all of it. The file is removed when this is dropped.
    ///
    /// The caller must ensure that no process writes to the file.
    ///
    /// # Errors
    /// Returns [`WriteError::Io`] if the file cannot be read. The file is removed in that case,
    /// too.
    pub fn adopt(file: File, path: &Path) -> Result<BlobFile, WriteError> {
        let file = TempFile::adopt(file, path)?;
        let (digest, size) = digest_of(file.file()).map_err(WriteError::io("read", file.path()))?;
        Ok(BlobFile { file, size, digest })
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the open file. Its cursor may be anywhere.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Returns the temporary name.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Waits until the bytes are on the disk (fdatasync).
    ///
    /// # Errors
    /// Returns [`WriteError::Io`]. What is on the disk is then unknown; a second call does not
    /// help.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.file.sync()
    }

    /// Renames the file to its final name, atomically. An existing file of that name is replaced.
    /// No process may write to the file any more.
    ///
    /// Returns the file open for reading only, with the cursor at its start. To make the name
    /// survive a power cut, the caller calls [`BlobFile::sync`] before, and syncs the directory
    /// afterwards.
    ///
    /// # Errors
    /// Returns [`WriteError::Io`]. The file is removed then.
    pub fn persist(self, to: &Path) -> Result<File, WriteError> {
        self.file.persist(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn digest(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_complete_file_has_its_bytes_and_is_read_only() {
        let dir = tempfile::tempdir().unwrap();
        for size in [Some(6), None] {
            let mut writer = BlobWriter::create_unsized(dir.path()).unwrap();
            if let Some(size) = size {
                writer.expect(size).unwrap();
            }
            writer.write(b"abc").unwrap();
            writer.write(b"").unwrap();
            writer.write(b"def").unwrap();
            assert_eq!(writer.written(), 6);
            let file = writer.complete_checked(digest(b"abcdef")).unwrap();
            assert_eq!((file.size(), file.digest()), (6, digest(b"abcdef")));
            file.sync().unwrap();
            let to = dir.path().join("final");
            let opened = file.persist(&to).unwrap();
            assert_eq!(io::read_to_string(&opened).unwrap(), "abcdef");
            assert!((&opened).write_all(b"x").is_err());
            assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o222, 0);
            assert_eq!(names(dir.path()), 1);
        }
    }

    #[test]
    fn an_empty_blob_is_a_blob() {
        let dir = tempfile::tempdir().unwrap();
        let file = BlobWriter::create(dir.path(), 0).unwrap().complete_checked(digest(b"")).unwrap();
        assert_eq!(file.size(), 0);
    }

    #[test]
    fn wrong_sizes_and_wrong_bytes_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = BlobWriter::create(dir.path(), 4).unwrap();
        writer.write(b"abc").unwrap();
        assert!(matches!(writer.write(b"de"), Err(WriteError::TooLong { size: 4, found: 5 })));
        assert!(matches!(writer.complete(), Err(WriteError::TooShort { size: 4, found: 3 })));

        let mut writer = BlobWriter::create(dir.path(), 4).unwrap();
        writer.write(b"abcx").unwrap();
        let wrong = writer.complete_checked(digest(b"abcd"));
        assert!(matches!(wrong, Err(WriteError::Digest { expected, .. }) if expected == digest(b"abcd")));
        assert_eq!(names(dir.path()), 0);
    }

    #[test]
    fn a_full_disk_is_noticed_before_the_first_byte() {
        // No disk has 2^62 free bytes. File systems report that in different ways.
        let dir = tempfile::tempdir().unwrap();
        assert!(BlobWriter::create(dir.path(), 1 << 62).is_err());
        assert_eq!(names(dir.path()), 0);

        let full = WriteError::space("write to", Path::new("/cache/tmp/x"), 10);
        let full = full(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()));
        assert!(
            full.to_string().starts_with("no room on the disk for 10 more bytes at /cache/tmp/x"),
            "{full}"
        );
    }

    #[test]
    fn an_adopted_file_has_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        fs::write(&path, "abc").unwrap();
        let file = BlobFile::adopt(File::open(&path).unwrap(), &path).unwrap();
        assert_eq!((file.size(), file.digest()), (3, digest(b"abc")));
        drop(file);
        assert!(!path.exists());
    }
}
