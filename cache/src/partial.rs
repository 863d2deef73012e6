//! The bytes of a blob that is being downloaded: one file, whose name the blob alone decides.
//!
//! It is `tmp/partial/<oid>.<tid>.part`. Only who is in charge of the blob writes to it, or removes it: in this process
//! the registry sees to that, between processes the lock of the blob's bucket. So nobody has to look for it: who takes
//! over from a dead process, and who reads along, opens the file that is there.
//!
//! Bytes are only ever added to a partial file, and as many are in it as it is long. Who begins again from nothing makes
//! another file under the same name. Whether the bytes are the blob's is known only when all of them are there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blobferry_protocol::BlobId;
use rustix::fs::OFlags;

use crate::layout::{Layout, create_dir};
use crate::temporary::Temporary;
use crate::writer::{BlobWriter, WriteError};

/// Where a blob's partial file is, if it is there.
#[derive(Debug)]
pub(crate) struct Partial {
    dir: PathBuf,
    path: PathBuf,
}

impl Partial {
    pub(crate) fn of(layout: &Layout, blob: BlobId) -> Partial {
        let dir = layout.tmp().join("partial");
        let path = dir.join(format!("{}.{}.part", blob.oid, blob.tid));
        Partial { dir, path }
    }

    /// The name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of all partial files, which is made where it is not there.
    pub(crate) fn dir(&self) -> io::Result<&Path> {
        create_dir(&self.dir, 0o700)?;
        Ok(&self.dir)
    }

    /// How many bytes somebody has left there.
    pub(crate) fn len(&self) -> u64 {
        fs::symlink_metadata(&self.path).map_or(0, |found| if found.is_file() { found.len() } else { 0 })
    }

    /// Opens the file for reading.
    pub(crate) fn open(&self) -> io::Result<File> {
        self.open_as(OpenOptions::new().read(true))
    }

    /// Begins another file, in place of any that is there.
    pub(crate) fn create(&self) -> Result<BlobWriter, WriteError> {
        self.dir().map_err(WriteError::io("create", &self.dir))?;
        self.remove().map_err(WriteError::io("remove", &self.path))?;
        let file = OpenOptions::new().read(true).append(true).create_new(true).open(&self.path);
        let file = file.map_err(WriteError::space("create", &self.path, 0))?;
        Ok(BlobWriter::over(Temporary::adopt(file, &self.path)?))
    }

    /// Goes on with the file that is there: reads all of it. Nobody else may be able to write to it.
    pub(crate) fn resume(&self) -> io::Result<BlobWriter> {
        let file = self.open_as(OpenOptions::new().read(true).append(true))?;
        let metadata = file.metadata()?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.nlink() != 1 {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "others may write to it"));
        }
        let mut writer = BlobWriter::over(Temporary::adopt(file, &self.path).map_err(io::Error::other)?);
        writer.catch_up()?;
        Ok(writer)
    }

    /// Removes what is there.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Opens a regular file of that name, and nothing else; not by a symbolic link, and without waiting for a pipe.
    fn open_as(&self, options: &mut OpenOptions) -> io::Result<File> {
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(careful.bits().cast_signed()).open(&self.path)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
        }
    }
}
