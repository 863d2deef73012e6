//! Proving all of a cache: every blob is read, and must have the digest that its stamp tells.

use std::io::{self, ErrorKind};

use blobferry_protocol::BlobId;
use rustix::fs::OFlags;

use crate::cache::Cache;
use crate::error::CacheError;
use crate::keep::Entry;
use crate::stamp::{self, Trust};
use crate::writer::digest_of;

/// What [`Cache::verify`] has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many blobs have the bytes that they should.
    pub proven: u64,
    /// The bytes of those.
    pub bytes: u64,
    /// Blobs of which nothing tells what they should be: files of ZEO's, or on a file system without attributes. They
    /// were left as they are.
    pub unverifiable: u64,
    /// Blobs that were damaged. Their files are removed: who wants one downloads it again.
    pub damaged: Vec<BlobId>,
}

impl Cache {
    /// Reads every blob, and removes those that are damaged. `progress` is called after each of them.
    ///
    /// # Errors
    /// [`CacheError::Io`]; [`CacheError::Room`]; [`CacheError::ServersOwn`].
    pub fn verify(&self, mut progress: impl FnMut(&Entry)) -> Result<Verified, CacheError> {
        let room = self.own_room("verify blobs")?;
        let mut verified = Verified::default();
        for entry in self.blobs() {
            let entry = entry?;
            let Some((file, _)) = self.open_blob(entry.blob)? else { continue };
            let failed = |operation| CacheError::io(operation, &entry.path);
            // To look at all of them is to use none of them.
            _ = rustix::fs::fcntl_setfl(&file, OFlags::NOATIME);
            let stamped = stamp::digest(&file).map_err(failed("read the stamp of"))?;
            match stamped.map(|digest| (digest, digest_of(&file))) {
                None => verified.unverifiable += 1,
                Some((digest, Ok((found, size)))) if found == digest => {
                    verified.proven += 1;
                    verified.bytes += size;
                    if stamp::trust(&file, self.boot()).map_err(failed("read the stamp of"))?
                        != Trust::Trusted
                    {
                        self.proven(entry.blob, &file, digest);
                    }
                }
                Some((_, Err(error))) if !is_damage(&error) => return Err(failed("read")(error)),
                Some(_) => {
                    tracing::warn!(blob = %entry.blob, path = %entry.path.display(), "removed a damaged file");
                    room.remove(&entry.path).map_err(CacheError::Room)?;
                    verified.damaged.push(entry.blob);
                }
            }
            progress(&entry);
        }
        Ok(verified)
    }
}

/// The disk has lost what was there. Everything else may be otherwise the next time.
fn is_damage(error: &io::Error) -> bool {
    let lost = [rustix::io::Errno::IO, rustix::io::Errno::BADMSG].map(|errno| Some(errno.raw_os_error()));
    lost.contains(&error.raw_os_error()) || error.kind() == ErrorKind::InvalidData
}
