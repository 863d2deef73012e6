//! A file of blob bytes that is being filled: reserved, written in order, hashed on the way, checked at the end.
//!
//! Until it is given its final name it is a temporary file, and vanishes when it is dropped. So whatever goes
//! wrong in between, no reader can mistake a part for the whole.

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
/// use blobferry_cache::{BlobWriter, WriteError};
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
    /// How many bytes will come, where that is known.
    size: Option<u64>,
    written: u64,
    /// Boxed: it has 2 KiB.
    hasher: Box<blake3::Hasher>,
}

impl BlobWriter {
    /// Makes a file in `dir`, under a name that no other has, for exactly `size` bytes. Room for all of them is
    /// reserved on the disk where the file system can do that.
    ///
    /// # Errors
    /// [`WriteError::NoSpace`] where the disk is too full for `size` bytes.
    pub fn create(dir: &Path, size: u64) -> Result<BlobWriter, WriteError> {
        let mut writer = BlobWriter::create_unsized(dir)?;
        writer.expect(size)?;
        Ok(writer)
    }

    /// Makes a file in `dir`, under a name that no other has, for any number of bytes.
    ///
    /// # Errors
    /// [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn create_unsized(dir: &Path) -> Result<BlobWriter, WriteError> {
        TempFile::create(dir).map(BlobWriter::new)
    }

    /// Fills a file that is open for reading, and for writing at its end.
    pub fn new(file: TempFile) -> BlobWriter {
        BlobWriter { file, size: None, written: 0, hasher: Box::default() }
    }

    /// Takes the bytes that are in the file already for the first ones. All of them are read, to hash them.
    pub fn hash_existing(&mut self) -> io::Result<()> {
        hash(self.file.file(), &mut self.hasher)?;
        self.written = self.hasher.count();
        Ok(())
    }

    /// From now on exactly `size` bytes are expected in all, and room for those that are still to come is reserved.
    pub fn expect(&mut self, size: u64) -> Result<(), WriteError> {
        self.file.reserve(size)?;
        self.size = Some(size);
        Ok(())
    }

    /// Says on the file how many bytes are expected, for who reads along. Not every file system can note it.
    pub fn announce(&self) {
        if let Some(size) = self.size {
            _ = integrity::announce(self.file.file(), size);
        }
    }

    /// How many bytes are expected in all, where that is known.
    pub fn expected(&self) -> Option<u64> {
        self.size
    }

    /// Leaves the bytes that were written, and no more room than they need, under their temporary name.
    pub fn retain_partial(self) {
        // To cut the file off where it ends gives back what was reserved behind that. Where it can not be, it stays.
        _ = self.file.file().set_len(self.written);
        self.file.retain();
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], with nothing written; [`WriteError::NoSpace`] and [`WriteError::Io`], after which
    /// the writer can only be dropped.
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

    /// Opens the file once more, for who has something to do with it while it is being filled.
    ///
    /// # Errors
    /// The file system's.
    pub fn open_again(&self) -> io::Result<File> {
        self.file.open_again()
    }

    /// Returns the digest of the bytes that were written so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// How many bytes were written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Ends the file: all bytes are there.
    ///
    /// # Errors
    /// [`WriteError::TooShort`].
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
    /// [`WriteError::TooShort`] and [`WriteError::Digest`].
    pub fn complete_checked(self, expected: Digest) -> Result<BlobFile, WriteError> {
        let file = self.complete()?;
        match file.digest == expected || planted(Bug::ForgetDigestCheck) {
            true => Ok(file),
            false => Err(WriteError::Digest { expected, found: file.digest }),
        }
    }
}

/// All bytes of a blob in a file that is still temporary. Dropped, it is removed.
#[derive(Debug)]
pub struct BlobFile {
    /// The file, under its temporary name.
    pub file: TempFile,
    size: u64,
    digest: Digest,
}

impl BlobFile {
    /// Takes over a temporary file that exists: `file`, opened for reading, which is called `path`. From now on it
    /// is removed when this is dropped. All of it is read, to hash it.
    ///
    /// The caller vouches for it that nobody else writes to the file.
    ///
    /// # Errors
    /// [`WriteError::Io`] where it can not be read. It is removed then, too.
    pub fn adopt(file: File, path: &Path) -> Result<BlobFile, WriteError> {
        let file = TempFile::adopt(file, path)?;
        let (digest, size) = digest_of(file.file()).map_err(WriteError::io("read", file.path()))?;
        Ok(BlobFile { file, size, digest })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of its bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The open file. Its cursor may be anywhere.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Its temporary name.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Waits until the bytes are on the disk (fdatasync).
    ///
    /// # Errors
    /// [`WriteError::Io`]. It is not known then what is on the disk, and to try again does not help.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.file.sync()
    }

    /// Gives the file its final name, in place of any other of that name, at once and whole. Nobody may write to
    /// it any more.
    ///
    /// What is returned is open for reading only, from the beginning. To make the name survive a power cut is the
    /// caller's part: [`BlobFile::sync`] before, and a sync of the directory after.
    ///
    /// # Errors
    /// [`WriteError::Io`]. The file is removed then.
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
    fn a_complete_file_has_its_bytes_digest_and_name_and_is_read_only() {
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
    fn too_long_too_short_and_wrong_bytes_leave_nothing() {
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
    fn a_full_disk_is_an_error_before_the_first_byte() {
        // No disk of this world has room for 2^62 bytes. File systems say so in different ways.
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
    fn a_file_that_exists_is_adopted_with_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        fs::write(&path, "abc").unwrap();
        let file = BlobFile::adopt(File::open(&path).unwrap(), &path).unwrap();
        assert_eq!((file.size(), file.digest()), (3, digest(b"abc")));
        drop(file);
        assert!(!path.exists());
    }
}
