//! A file under a temporary name, which is removed when it is dropped, unless it got its final name
//! before.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use tempfile::TempPath;

use blobferry_protocol::planted::{Bug, planted};

use crate::blobdir::error::WriteError;
use crate::os::allocate::allocate;
use crate::os::files;

/// Space of a quota that one file may use. Dropped, it returns the space: the file must be removed
/// before.
pub trait Reservation: std::fmt::Debug + Send + Sync {
    /// Reserves space for exactly `size` bytes of the file.
    ///
    /// # Errors
    /// [`WriteError::Full`], [`WriteError::NoSpace`] and [`WriteError::Io`].
    fn extend(&mut self, file: &File, size: u64) -> Result<(), WriteError>;

    /// Reserves space for `size` bytes of a file that grows step by step.
    ///
    /// # Errors
    /// [`WriteError::Full`], [`WriteError::NoSpace`] and [`WriteError::Io`].
    fn grow(&mut self, file: &File, size: u64) -> Result<(), WriteError>;

    /// Locks the file, opened once more, before other processes can see it, so that it is not
    /// evicted before it is handed out.
    ///
    /// # Errors
    /// Returns the file system's error.
    fn protect(&self, file: &File) -> io::Result<()>;

    /// Ends the reservation of a file that is complete and stays.
    ///
    /// # Errors
    /// Returns the file system's error.
    fn settle(self: Box<Self>, file: &File) -> io::Result<()>;
}

/// An open file under a temporary name.
///
/// Dropped, it is removed, and then its reservation is returned: fields are dropped in this order.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: TempPath,
    /// `None` if no quota counts the file.
    reservation: Option<Box<dyn Reservation>>,
}

impl TempFile {
    /// Creates an empty file in `dir`, open for reading and writing, under a unique name.
    ///
    /// The name consists of letters, digits and one `-`. In shared mode the client sends it to the
    /// server, which accepts no other names.
    ///
    /// # Errors
    /// Returns [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn create(dir: &Path) -> Result<TempFile, WriteError> {
        let (file, path) = tempfile::Builder::new()
            .prefix("blob-")
            .permissions(Permissions::from_mode(0o666)) // less the umask
            .tempfile_in(dir)
            .map_err(WriteError::space("create a file in", dir, 0))?
            .into_parts();
        Ok(TempFile { file, path, reservation: None })
    }

    /// Adopts an existing file.
    ///
    /// # Errors
    /// Returns [`WriteError::Io`] if the path cannot be made absolute.
    pub fn adopt(file: File, path: &Path) -> Result<TempFile, WriteError> {
        let path = TempPath::try_from_path(path).map_err(WriteError::io("take over", path))?;
        Ok(TempFile { file, path, reservation: None })
    }

    /// Replaces the open file: the temporary name belongs to another file now.
    pub fn with(self, file: File) -> TempFile {
        TempFile { file, ..self }
    }

    /// Attaches the space that is reserved for the file.
    #[must_use]
    pub fn with_reservation(self, reservation: Box<dyn Reservation>) -> TempFile {
        TempFile { reservation: Some(reservation), ..self }
    }

    /// Returns whether a quota counts the file.
    pub fn has_reservation(&self) -> bool {
        self.reservation.is_some()
    }

    /// Reserves space for all of `size` bytes.
    ///
    /// # Errors
    /// Returns [`WriteError::Full`], [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn reserve(&mut self, size: u64) -> Result<(), WriteError> {
        match &mut self.reservation {
            Some(reservation) => reservation.extend(&self.file, size),
            None => {
                let allocated = allocate(&self.file, 0, size, None).map_err(io::Error::from);
                allocated.map(drop).map_err(WriteError::space("reserve room for", &self.path, size))
            }
        }
    }

    /// Reserves space for `size` bytes of a file that grows step by step. Without a quota it does
    /// nothing: the write itself fails on a full disk.
    ///
    /// # Errors
    /// Returns [`WriteError::Full`], [`WriteError::NoSpace`] and [`WriteError::Io`].
    pub fn grow(&mut self, size: u64) -> Result<(), WriteError> {
        match &mut self.reservation {
            Some(reservation) => reservation.grow(&self.file, size),
            None => Ok(()),
        }
    }

    /// Leaves the file under its temporary name. The quota continues to count its bytes.
    pub fn retain(self) {
        let TempFile { file, path, reservation } = self;
        // A file that cannot be retained is removed, and returns its space.
        if path.keep().is_ok()
            && let Some(reservation) = reservation
            && let Err(error) = reservation.settle(&file)
        {
            tracing::warn!(%error, "cannot read the size of a partial download");
        }
    }

    /// Returns the open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the temporary name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file once more, for reading. If another process has replaced it by a pipe, this
    /// does not block.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn open_again(&self) -> io::Result<File> {
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        OpenOptions::new().read(true).custom_flags(careful.bits().cast_signed()).open(&self.path)
    }

    /// Waits until the bytes are on the disk.
    ///
    /// # Errors
    /// Returns [`WriteError::Io`].
    pub fn sync(&self) -> Result<(), WriteError> {
        if planted(Bug::SkipBlobSync) {
            return Ok(());
        }
        files::sync(&self.file).map_err(WriteError::io("sync", &self.path))
    }

    /// Makes the file read-only and renames it. Returns it open for reading only, with the cursor
    /// at its start.
    ///
    /// # Errors
    /// Returns [`WriteError::Io`].
    pub fn persist(self, to: &Path) -> Result<File, WriteError> {
        let mode = self
            .file
            .metadata()
            .map_err(WriteError::io("read the mode of", &self.path))?
            .permissions()
            .mode();
        // Opened under the temporary name: another process may evict the file as soon as it has its
        // final one.
        let reader = File::open(&self.path).map_err(WriteError::io("open", &self.path))?;
        let read_only = Permissions::from_mode(mode & 0o7777 & !0o222);
        self.file.set_permissions(read_only).map_err(WriteError::io("make read-only", &self.path))?;
        if let Some(reservation) = &self.reservation {
            reservation.protect(&reader).map_err(WriteError::io("lock", &self.path))?;
        }
        files::persist(self.path, to).map_err(WriteError::io("rename a complete file to", to))?;
        if let Some(reservation) = self.reservation {
            reservation.settle(&self.file).map_err(WriteError::io("read the size of", to))?;
        }
        Ok(reader)
    }
}
