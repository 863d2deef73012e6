//! Verification of a whole cache: every blob is read, and must have the digest of its stamp.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use blobferry_protocol::BlobId;
use rustix::fs::OFlags;

use crate::cache::Cache;
use crate::error::CacheError;
use crate::maintenance::CacheEntry;
use crate::segments::record;
use crate::segments::{LARGEST, Segments};
use blobferry_platform::blobdir::integrity;
use blobferry_platform::blobdir::integrity::Trust;
use blobferry_platform::hash::digest_of;

/// The result of [`Cache::verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The number of blobs that have the right bytes.
    pub proven: u64,
    /// The bytes of those.
    pub bytes: u64,
    /// The number of blobs without a known digest: ZEO's files, or files on a file system without
    /// attributes. They are left as they are.
    pub unverifiable: u64,
    /// The damaged blobs. Their files are removed, or their hints, if they are in segments; the
    /// next claim downloads them.
    pub damaged: Vec<BlobId>,
}

impl Cache {
    /// Reads every blob, and removes the damaged ones. Calls `progress` after each blob.
    ///
    /// # Errors
    /// Returns [`CacheError::Io`]; [`CacheError::Quota`]; [`CacheError::ServersOwn`] in shared
    /// mode.
    pub fn verify(&self, mut progress: impl FnMut(&CacheEntry)) -> Result<Verified, CacheError> {
        let quota = self.0.own_quota("verify blobs")?;
        let mut verified = Verified::default();
        for entry in self.blobs() {
            let entry = entry?;
            let Some((file, _)) = self.0.open_blob(entry.blob)? else { continue };
            let failed = |operation| CacheError::io(operation, &entry.path);
            // Verification is no use: it must not change the access time.
            _ = rustix::fs::fcntl_setfl(&file, OFlags::NOATIME);
            let stamped = integrity::digest(&file).map_err(failed("read the stamp of"))?;
            match stamped.map(|digest| (digest, digest_of(&file))) {
                None => verified.unverifiable += 1,
                Some((digest, Ok((found, size)))) if found == digest => {
                    verified.proven += 1;
                    verified.bytes += size;
                    if integrity::trust(&file, self.0.boot()).map_err(failed("read the stamp of"))?
                        != Trust::Verified
                    {
                        self.0.set_verified(entry.blob, &file, digest);
                    }
                }
                Some((_, Err(error))) if !is_damage(&error) => return Err(failed("read")(error)),
                Some(_) => {
                    tracing::warn!(blob = %entry.blob, path = %entry.path.display(), "removed a damaged file");
                    quota.remove(&entry.path).map_err(CacheError::Quota)?;
                    verified.damaged.push(entry.blob);
                }
            }
            progress(&entry);
        }
        if let Some(segments) = self.0.segments() {
            for number in segments.numbers().map_err(CacheError::io("list", self.layout().segments_dir()))? {
                self.verify_segment(segments, number, &mut verified, &mut progress)?;
            }
        }
        Ok(verified)
    }

    fn verify_segment(
        &self,
        segments: &Segments,
        number: u32,
        verified: &mut Verified,
        progress: &mut impl FnMut(&CacheEntry),
    ) -> Result<(), CacheError> {
        let Some(segment) = segments.open_segment(number) else { return Ok(()) };
        _ = rustix::fs::fcntl_setfl(&segment, OFlags::NOATIME);
        for (at, entry) in self.small_blobs_in(number)? {
            let mut bytes = vec![0; usize::try_from(entry.on_disk.min(LARGEST)).unwrap_or_default()];
            let read = segment.read_exact_at(&mut bytes, at);
            match read.map(|()| record::open(entry.blob, bytes)) {
                Ok(Some((bytes, _))) => {
                    verified.proven += 1;
                    verified.bytes += bytes.len() as u64;
                }
                Err(error) if !is_damage(&error) && error.kind() != ErrorKind::UnexpectedEof => {
                    return Err(CacheError::io("read", &entry.path)(error));
                }
                Ok(None) | Err(_) => {
                    tracing::warn!(blob = %entry.blob, path = %entry.path.display(), "forgot a damaged blob");
                    segments.forget(entry.blob, number, at).map_err(CacheError::Quota)?;
                    verified.damaged.push(entry.blob);
                }
            }
            progress(&entry);
        }
        Ok(())
    }
}

/// Returns whether the disk has lost the bytes. Other errors may be temporary.
fn is_damage(error: &io::Error) -> bool {
    let lost = [rustix::io::Errno::IO, rustix::io::Errno::BADMSG].map(|errno| Some(errno.raw_os_error()));
    lost.contains(&error.raw_os_error()) || error.kind() == ErrorKind::InvalidData
}
