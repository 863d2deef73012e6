//! Stages blobs in files: arriving bytes, and files of clients that share the directory.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use blobferry_platform::blobdir::{BlobWriter, WriteError};
use blobferry_platform::os::files;
use blobferry_protocol::{BlobInfo, Digest, RequestError};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::errors::disk_error;
use crate::sqlite::backend::SqliteBackend;
use crate::sqlite::early_sync::UploadSync;
use crate::sqlite::errors::blob_error;
use crate::sqlite::files::Staging;
use crate::sqlite::poison::Poison;
use crate::sqlite::space::SpaceReservation;
use crate::sqlite::sync_counter::SyncCounter;
use crate::staging::{QuotaPermit, Stage, Staged, StagedContent, StagedFile, mismatch};

/// A stage that writes a blob's bytes to a file.
pub(super) struct FileStage {
    writer: BlobWriter,
    upload_sync: UploadSync,
    reservation: SpaceReservation,
    staging: Arc<Staging>,
    poison: Poison,
    syncs: SyncCounter,
    permit: QuotaPermit,
}

impl SqliteBackend {
    pub(super) fn stage_file(&self, size: u64, permit: QuotaPermit) -> Result<FileStage, RequestError> {
        let reservation = self.space.reserve(size)?;
        let writer = BlobWriter::create(self.layout.tmp(), size).map_err(|error| match error {
            WriteError::NoSpace { .. } => self.space.not_reserved(&error),
            error => blob_error(&error),
        })?;
        let (staging, poison) = (self.staging.clone(), self.database.poison.clone());
        let (upload_sync, syncs) = (self.early_sync.for_upload(size), self.database.syncs.clone());
        Ok(FileStage { writer, upload_sync, reservation, staging, poison, syncs, permit })
    }

    /// Takes over a file that a client has put into `tmp`.
    pub(super) fn adopt_file(
        &self,
        name: &str,
        info: BlobInfo,
        permit: QuotaPermit,
    ) -> Result<Staged, RequestError> {
        let (file, staged) = self.take_file(name, info.size)?;
        let path = staged.path();
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file).map_err(|error| disk_error("read", &path, &error))?;
        let found = (Digest(*hasher.finalize().as_bytes()), hasher.count());
        if found != (info.digest, info.size) {
            return Err(mismatch(format!("{name:?} has {} bytes and the digest {}", found.1, found.0)));
        }
        let mode = file.metadata().map(|metadata| metadata.mode());
        mode.and_then(|mode| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777 & !0o222))?))
            .map_err(|error| disk_error("make read-only", &path, &error))?;
        self.database.syncs.add(1);
        files::sync(&file)
            .map_err(|error| self.database.poison.set(&format!("could not sync {name:?}: {error}")))?;
        Ok(Staged { info, content: StagedContent::File(staged), permit: Some(permit) })
    }

    /// Opens a file in `tmp` and renames it to a name that no client can use, so that the checked
    /// file is not replaced.
    ///
    /// The name is resolved beneath the directory, and no link is followed.
    fn take_file(&self, name: &str, size: u64) -> Result<(File, StagedFile), RequestError> {
        let refused = |why: &str| mismatch(format!("{name:?} in the server's tmp {why}"));
        let failed = |operation, error: Errno| match error {
            Errno::NOENT => refused("does not exist"),
            Errno::LOOP | Errno::NXIO => refused("is not a regular file"),
            error => disk_error(operation, &self.layout.tmp().join(name), &error.into()),
        };
        if !is_plain(name) {
            return Err(mismatch(format!("{name:?} is not the plain name of a file")));
        }
        // Without NONBLOCK, opening a pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            rustix::fs::openat(&self.tmp, name, flags, Mode::empty()).map_err(|e| failed("open", e))?;
        let file = File::from(file);
        let metadata =
            file.metadata().map_err(|e| disk_error("inspect", &self.layout.tmp().join(name), &e))?;
        if !metadata.is_file() {
            return Err(refused("is not a regular file"));
        }
        if metadata.nlink() != 1 {
            return Err(refused("has other names, too"));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(refused("does not belong to the server's user"));
        }
        if metadata.len() != size {
            return Err(refused(&format!("has {} bytes, not {size}", metadata.len())));
        }
        let staged = self.staging.reserve();
        let path = staged.path();
        let new_name = path.file_name().unwrap_or_default(); // it has one
        rustix::fs::renameat(&self.tmp, name, &self.tmp, new_name).map_err(|e| failed("rename", e))?;
        let taken = rustix::fs::statat(&self.tmp, new_name, AtFlags::SYMLINK_NOFOLLOW);
        let taken = taken.map_err(|e| failed("inspect", e))?;
        if (taken.st_dev, taken.st_ino) != (metadata.dev(), metadata.ino()) || taken.st_nlink != 1 {
            return Err(refused("was replaced while it was checked"));
        }
        Ok((file, staged))
    }
}

/// Returns whether a name is one component of letters, digits, `.`, `_` and `-`, and not hidden.
/// The store's own files in `tmp` are hidden.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(plain)
}

impl Stage for FileStage {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        self.writer.write(bytes).map_err(|error| blob_error(&error))?;
        self.reservation.consume(bytes.len() as u64);
        self.upload_sync.written(self.writer.written(), || self.writer.open_again());
        Ok(())
    }

    fn complete(self: Box<Self>, digest: Digest) -> Result<Staged, RequestError> {
        let failed = |error: WriteError| blob_error(&error);
        let blob = self.writer.complete_checked(digest).map_err(failed)?;
        self.syncs.add(1);
        blob.sync().map_err(|error| self.poison.set(&error))?;
        let info = BlobInfo { size: blob.size(), digest };
        let staged = self.staging.reserve();
        // Closed here, since a transaction may stage more files than a process may have open.
        let _: File = blob.persist(&staged.path()).map_err(failed)?;
        Ok(Staged { info, content: StagedContent::File(staged), permit: Some(self.permit) })
    }
}

/// Opens the directory in which names from clients are resolved.
pub(super) fn open_dir(path: &std::path::Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use crate::sqlite::stage::is_plain;

    #[test]
    fn only_plain_names_are_names() {
        for name in ["a", "blob-Xy_1.tmp", "..."[..0].trim(), "x..y"] {
            assert_eq!(is_plain(name), !name.is_empty(), "{name:?}");
        }
        for name in [".", "..", ".staged-0", "a/b", "/etc/passwd", "a\0", "ä", "a b", &"x".repeat(256)] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
