//! A file under a temporary name: removed when it is dropped, unless it was given its final name before.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempPath;

use crate::writer::WriteError;

/// An open file under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Temporary {
    file: File,
    path: TempPath,
}

impl Temporary {
    /// Makes an empty file in `dir`, open for reading and writing, under a name that no other has.
    ///
    /// The name is made of letters, digits and one `-`: a client in shared mode tells it to the server, which
    /// takes no other.
    pub(crate) fn create(dir: &Path) -> Result<Temporary, WriteError> {
        let (file, path) = tempfile::Builder::new()
            .prefix("blob-")
            .permissions(Permissions::from_mode(0o666)) // less the umask: who may read it later is its owner's choice
            .tempfile_in(dir)
            .map_err(WriteError::space("create a file in", dir, 0))?
            .into_parts();
        Ok(Temporary { file, path })
    }

    /// Takes over a file that exists.
    pub(crate) fn adopt(file: File, path: &Path) -> Result<Temporary, WriteError> {
        let path = TempPath::try_from_path(path).map_err(WriteError::io("take over", path))?;
        Ok(Temporary { file, path })
    }

    /// The same name, under which there is another file now.
    pub(crate) fn with(self, file: File) -> Temporary {
        Temporary { file, path: self.path }
    }

    /// Leaves the file where it is.
    pub(crate) fn keep(self) {
        _ = self.path.keep();
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the bytes are on the disk.
    pub(crate) fn sync(&self) -> Result<(), WriteError> {
        self.file.sync_data().map_err(WriteError::io("sync", &self.path))
    }

    /// Makes the file read-only and renames it. What is returned is open for reading only, from the beginning.
    pub(crate) fn persist(self, to: &Path) -> Result<File, WriteError> {
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
        self.path
            .persist(to)
            .map_err(|error| WriteError::io("rename a complete file to", to)(error.error))?;
        Ok(reader)
    }
}
