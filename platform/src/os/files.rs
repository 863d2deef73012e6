//! The file operations whose order, completeness and durability decide what a crash leaves.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use blobferry_protocol::planted::{Bug, planted};
use tempfile::TempPath;

pub use super::step::Step;

/// Returns how many bytes of a step to perform: what the simulation says if this thread is in one,
/// otherwise all. Steps that are not about bytes return 0.
fn permit(step: Step<'_>) -> io::Result<usize> {
    super::simulated!(simulation => simulation.file(step));
    Ok(match step {
        Step::Write { len, .. } => len,
        _ => 0,
    })
}

/// Writes all of `bytes` at the file's cursor (at its end, if the file is open for appending).
///
/// # Errors
/// Returns the file system's error. Any part of the bytes may have been written.
pub fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = permit(Step::Write { file, len: rest.len() })?.min(rest.len());
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

/// Overwrites the bytes of a file from the offset `at` on.
///
/// # Errors
/// Returns the file system's error. Any part of the bytes may have been written.
pub fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    permit(Step::Overwrite { file, at, bytes })?;
    file.write_all_at(bytes, at)
}

/// Waits until the bytes of a file are on the disk.
///
/// # Errors
/// Returns the file system's error. What is on the disk is then unknown; a second call does not
/// help.
pub fn sync(file: &File) -> io::Result<()> {
    permit(Step::Sync(file))?;
    file.sync_data()
}

/// Waits until the names in a directory are on the disk.
///
/// # Errors
/// Returns the file system's error. What is on the disk is then unknown; a second call does not
/// help.
pub fn sync_names(directory: &Path) -> io::Result<()> {
    permit(Step::SyncNames(directory))?;
    File::open(directory)?.sync_all()
}

/// Returns the number of free bytes on a directory's disk; `None` if its file system has no size.
#[must_use]
pub fn free(dir: &Path) -> Option<u64> {
    super::simulated!(simulation => Some(simulation.free()));
    let stat = rustix::fs::statvfs(dir).ok()?;
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Renames a file. An existing file of the new name is replaced.
///
/// # Errors
/// Returns the file system's error.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    permit(Step::Rename { from, to })?;
    fs::rename(from, to)
}

/// Renames a temporary file to its final name.
///
/// # Errors
/// Returns the file system's error. The temporary file is then removed.
pub fn persist(file: TempPath, to: &Path) -> io::Result<()> {
    permit(Step::Rename { from: &file, to })?;
    file.persist(to).map_err(|error| error.error)
}

/// Removes a file.
///
/// # Errors
/// Returns the file system's error.
pub fn remove(path: &Path) -> io::Result<()> {
    permit(Step::Remove(path))?;
    fs::remove_file(path)
}
