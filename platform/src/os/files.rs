//! The steps with files whose order, completeness and durability is what the promises about crashes rest on.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use blobferry_protocol::planted::{Bug, planted};
use tempfile::TempPath;

/// A step that is about to be taken.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Bytes are written at the end of a file.
    Write {
        /// The file.
        file: &'a File,
        /// How many bytes.
        len: usize,
    },
    /// Bytes are written over others, in a file that keeps its length.
    Overwrite {
        /// The file.
        file: &'a File,
        /// The first one's offset.
        at: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A file's bytes are made durable.
    Sync(&'a File),
    /// The names in a directory are made durable.
    SyncNames(&'a Path),
    /// A file gets another name.
    Rename {
        /// The one it has.
        from: &'a Path,
        /// The one it gets.
        to: &'a Path,
    },
    /// A name goes.
    Remove(&'a Path),
}

/// Asks the simulation, if this thread is in one, how many bytes of a step are done; all, where it is not about bytes.
fn ask(step: Step<'_>) -> io::Result<usize> {
    super::simulated!(simulation => simulation.file(step));
    Ok(match step {
        Step::Write { len, .. } => len,
        _ => 0,
    })
}

/// Writes all of `bytes` at the file's end, or where its cursor is.
///
/// # Errors
/// The file system's. Any part of the bytes may be written then.
pub fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = ask(Step::Write { file, len: rest.len() })?.min(rest.len());
        match file.write(rest.get(..most).unwrap_or_default()) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(_) if planted(Bug::IgnoreShortWrite) => return Ok(()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `bytes` over others that are there, from an offset on.
///
/// # Errors
/// As for [`write`](fn@write).
pub fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    ask(Step::Overwrite { file, at, bytes })?;
    file.write_all_at(bytes, at)
}

/// Waits until the bytes of a file are on the disk.
///
/// # Errors
/// The file system's. Nobody knows then what is on the disk, and to try again does not help.
pub fn sync(file: &File) -> io::Result<()> {
    ask(Step::Sync(file))?;
    file.sync_data()
}

/// Waits until the names in a directory are on the disk.
///
/// # Errors
/// As for [`sync`].
pub fn sync_names(directory: &Path) -> io::Result<()> {
    ask(Step::SyncNames(directory))?;
    File::open(directory)?.sync_all()
}

/// The bytes that are free on a directory's disk, where its file system has a size.
#[must_use]
pub fn free(dir: &Path) -> Option<u64> {
    super::simulated!(simulation => Some(simulation.free()));
    let stat = rustix::fs::statvfs(dir).ok()?;
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Gives a file another name, in place of any other of that name.
///
/// # Errors
/// The file system's.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    ask(Step::Rename { from, to })?;
    fs::rename(from, to)
}

/// Gives a temporary file its final name.
///
/// # Errors
/// The file system's. It is removed then.
pub fn persist(file: TempPath, to: &Path) -> io::Result<()> {
    ask(Step::Rename { from: &file, to })?;
    file.persist(to).map_err(|error| error.error)
}

/// Removes a file.
///
/// # Errors
/// The file system's.
pub fn remove(path: &Path) -> io::Result<()> {
    ask(Step::Remove(path))?;
    fs::remove_file(path)
}
