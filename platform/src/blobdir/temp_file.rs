//! A file under a temporary name: removed when it is dropped, unless it was given its final name before.

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

/// Space of a quota that a file may use. The file tells it as it grows; dropped, the space is given back: the file must be
/// gone by then.
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

    /// Locks the file, opened once more, before others can see it, so that it is not evicted before it is handed out.
    ///
    /// # Errors
    /// The file system's.
    fn protect(&self, file: &File) -> io::Result<()>;

    /// Ends the reservation of a file that is complete and stays.
    ///
    /// # Errors
    /// The file system's.
    fn settle(self: Box<Self>, file: &File) -> io::Result<()>;
}

/// An open file under a temporary name. Dropped, it is removed, and then the room that it had is given back: fields are
/// dropped in this order.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: TempPath,
    /// In a cache; `None` where nobody keeps account of room.
    reservation: Option<Box<dyn Reservation>>,
}

impl TempFile {
    /// Makes an empty file in `dir`, open for reading and writing, under a name that no other has.
    ///
    /// The name is made of letters, digits and one `-`: a client in shared mode tells it to the server, which
    /// takes no other.
    pub fn create(dir: &Path) -> Result<TempFile, WriteError> {
        let (file, path) = tempfile::Builder::new()
            .prefix("blob-")
            .permissions(Permissions::from_mode(0o666)) // less the umask: who may read it later is its owner's choice
            .tempfile_in(dir)
            .map_err(WriteError::space("create a file in", dir, 0))?
            .into_parts();
        Ok(TempFile { file, path, reservation: None })
    }

    /// Takes over a file that exists.
    pub fn adopt(file: File, path: &Path) -> Result<TempFile, WriteError> {
        let path = TempPath::try_from_path(path).map_err(WriteError::io("take over", path))?;
        Ok(TempFile { file, path, reservation: None })
    }

    /// The same name, under which there is another file now.
    pub fn with(self, file: File) -> TempFile {
        TempFile { file, ..self }
    }

    /// The same, with the space that was reservation for it.
    #[must_use]
    pub fn with_reservation(self, reservation: Box<dyn Reservation>) -> TempFile {
        TempFile { reservation: Some(reservation), ..self }
    }

    /// Whether an account has room for it.
    pub fn has_reservation(&self) -> bool {
        self.reservation.is_some()
    }

    /// Reserves room for all of `size` bytes.
    pub fn reserve(&mut self, size: u64) -> Result<(), WriteError> {
        match &mut self.reservation {
            Some(reservation) => reservation.extend(&self.file, size),
            None => {
                let allocated = allocate(&self.file, 0, size, None).map_err(io::Error::from);
                allocated.map(drop).map_err(WriteError::space("reserve room for", &self.path, size))
            }
        }
    }

    /// Sees to it that there is room for `size` bytes, of a file that grows step by step. Without an account, the disk
    /// itself will tell.
    pub fn grow(&mut self, size: u64) -> Result<(), WriteError> {
        match &mut self.reservation {
            Some(reservation) => reservation.grow(&self.file, size),
            None => Ok(()),
        }
    }

    /// Leaves the file where it is. What it takes there stays in the account.
    pub fn retain(self) {
        let TempFile { file, path, reservation } = self;
        // What can not be kept is removed, and gives its room back.
        if path.keep().is_ok()
            && let Some(reservation) = reservation
            && let Err(error) = reservation.settle(&file)
        {
            tracing::warn!(%error, "can not tell what a partial download takes");
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

    /// Opens the file once more, for reading. Should somebody have put something else in its place, a pipe for instance, that
    /// is not waited for.
    pub fn open_again(&self) -> io::Result<File> {
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        OpenOptions::new().read(true).custom_flags(careful.bits().cast_signed()).open(&self.path)
    }

    /// Waits until the bytes are on the disk.
    pub fn sync(&self) -> Result<(), WriteError> {
        if planted(Bug::SkipBlobSync) {
            return Ok(());
        }
        files::sync(&self.file).map_err(WriteError::io("sync", &self.path))
    }

    /// Makes the file read-only and renames it. What is returned is open for reading only, from the beginning.
    pub fn persist(self, to: &Path) -> Result<File, WriteError> {
        let mode = self
            .file
            .metadata()
            .map_err(WriteError::io("read the mode of", &self.path))?
            .permissions()
            .mode();
        // Opened before it has its name: once it has, anybody may remove it.
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
