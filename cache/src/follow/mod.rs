//! Reading a blob while any process of the machine downloads it.
//!
//! A follower reads the partial file as it grows. It learns the end because it has claimed the
//! blob, like any other waiting claim. Until then it sleeps, and the kernel wakes it when the file
//! has grown or vanished.
//!
//! Bytes that it has returned cannot be taken back. So before it reports the end, it makes sure
//! that they were the blob's. A partial file only grows, and becomes the blob by a rename: if the
//! follower reads the same file as the blob's, the bytes are right. If the download began again,
//! the file is another one, and the follower compares the returned bytes of the two.

pub(crate) mod end;
pub(crate) mod watch;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use blobferry_protocol::BlobId;

use crate::cache::Cache;
use crate::cache_dir::{CacheDir, Found};
use crate::cached_blob::CachedBlob;
use crate::claim::Claim;
use crate::claim::download::Download;
use crate::claim::partial::{Partial, same_beginning};
use crate::error::CacheError;
use crate::follow::end::{FollowEnd, FollowError, FollowState, failed};
use crate::follow::watch::{Watch, wait};
use blobferry_platform::blobdir::integrity;

/// A blob that is read while it is downloaded: see [`Cache::follow`].
///
/// It reads like a file that still grows: [`Read::read`] blocks until bytes come. **The end of the
/// file is a promise.** It is reported only if the complete blob is in the cache and has the right
/// digest. The bytes that were read are then the blob's. Everything else ends with an error that
/// contains a [`FollowError`]. If a caller must not use wrong bytes, it must read to the end before
/// it uses them.
#[derive(Debug)]
pub struct Follow {
    dir: CacheDir,
    blob: BlobId,
    partial: Partial,
    state: Arc<FollowState>,
    /// `None` if the system has no watch left. The bytes are then read when the claim is answered.
    watch: Option<Watch>,
    source: Source,
    /// The number of bytes read.
    at: u64,
    failed: Option<FollowError>,
}

/// The file to read from.
#[derive(Debug)]
enum Source {
    Nothing,
    Growing(File),
    Blob(CachedBlob),
}

impl Source {
    fn file(&self) -> Option<&File> {
        match self {
            Source::Nothing => None,
            Source::Growing(file) => Some(file),
            Source::Blob(cached) => Some(cached.file()),
        }
    }
}

impl Cache {
    /// Reads a blob that is in the cache, or is being downloaded by any thread or process of this
    /// machine, as its bytes arrive. Returns at once.
    ///
    /// If the downloader dies or gives up, this follower's claim may be next. It then lets the
    /// claims behind it go on, and the follower ends with [`FollowError::Unattended`]. If the
    /// caller can download the blob itself, use [`Cache::follow_with`].
    ///
    /// # Example
    /// ```
    /// # use blobferry_cache::{Cache, CacheConfig, Claim};
    /// # use blobferry_protocol::{BlobId, Digest, Oid, Tid};
    /// # use std::io::Read;
    /// # let home = tempfile::tempdir()?;
    /// # let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
    /// # let blob = BlobId { oid: Oid(7), tid: Tid(1) };
    /// let Claim::Download(mut download) = cache.claim(blob)? else { panic!("it is there already?") };
    /// let mut follow = cache.follow(blob)?;
    /// download.start(0, 11)?;
    /// download.write(b"hello ")?;
    ///
    /// let mut first = [0; 6];
    /// follow.read_exact(&mut first)?;
    /// assert_eq!(&first, b"hello ");
    ///
    /// download.write(b"world")?;
    /// download.finish(Digest(*blake3::hash(b"hello world").as_bytes()))?;
    /// let mut rest = String::new();
    /// follow.read_to_string(&mut rest)?; // the end comes only after the digest was found to be right
    /// assert_eq!(rest, "world");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`CacheError::Io`].
    pub fn follow(&self, blob: BlobId) -> Result<Follow, CacheError> {
        self.follow_with(blob, |download, _unattended| drop(download))
    }

    /// Does the same for a caller that can download the blob itself.
    ///
    /// If the follower's claim leads, `on_download` is called with the download, and continues it
    /// while the follower reads what arrives. [`FollowEnd::tell`] reports its end.
    ///
    /// `on_download` is called at most once, before this returns or on another thread, but not
    /// after the [`Follow`] was dropped. Like the callback of [`Cache::claim_with`], it must return
    /// quickly and must not wait.
    ///
    /// # Errors
    /// Returns [`CacheError::Io`].
    pub fn follow_with(
        &self,
        blob: BlobId,
        on_download: impl FnOnce(Download, FollowEnd) + Send + 'static,
    ) -> Result<Follow, CacheError> {
        let partial = Partial::of(self.layout(), blob);
        let state = Arc::new(FollowState::new(blob).map_err(CacheError::io("wait for", partial.path()))?);
        let follower = state.clone();
        self.claim_with(blob, move |claim| match claim {
            Ok(Claim::Hit(cached)) => follower.answer(Ok(cached)),
            Ok(Claim::Download(download)) if follower.lock().abandoned => drop(download),
            Ok(Claim::Download(download)) => on_download(download, FollowEnd(follower)),
            Err(error) => follower.answer(Err(failed(blob, error))),
        });
        // If there is an answer already, no watch is needed.
        let has_answer = state.lock().has_answer;
        let watch = if has_answer { None } else { watch(&partial) };
        let dir = self.0.clone();
        Ok(Follow { dir, blob, partial, state, watch, source: Source::Nothing, at: 0, failed: None })
    }
}

impl Follow {
    /// Returns the blob.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Returns the size of the blob in bytes, if it is known, in general after the first read.
    /// During the download it is the announced size, which is unknown on a file system without
    /// extended attributes.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        match &self.source {
            Source::Nothing => None,
            Source::Growing(file) => integrity::announced(file),
            Source::Blob(cached) => Some(cached.size()),
        }
    }

    /// Waits for the end of the download, whatever was read, and returns the complete blob. Its
    /// digest is right, and the bytes that were read were its first ones.
    ///
    /// # Errors
    /// Returns [`FollowError`].
    pub fn finish(mut self) -> Result<CachedBlob, FollowError> {
        self.check()?;
        loop {
            match std::mem::replace(&mut self.source, Source::Nothing) {
                Source::Blob(cached) => return Ok(cached),
                source => self.source = source,
            }
            self.advance(Until::End)?;
        }
    }

    /// Returns the error of an earlier call.
    fn check(&self) -> Result<(), FollowError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Waits until there is more to read, or until the blob is complete.
    fn advance(&mut self, until: Until) -> Result<(), FollowError> {
        let advanced = self.try_advance(until);
        self.failed = advanced.as_ref().err().cloned();
        advanced
    }

    fn try_advance(&mut self, until: Until) -> Result<(), FollowError> {
        loop {
            // First: a change after this wakes the follower, and a change before is seen below.
            if let Some(watch) = &self.watch {
                watch.clear();
            }
            let answer = self.state.lock().answer.take();
            if let Some(answer) = answer {
                return self.switch_to(Source::Blob(answer?));
            }
            let found = self.find_file().map_err(|error| self.io("read", error))?;
            if let Some(found) = found {
                let blob = matches!(found, Source::Blob(_));
                self.switch_to(found)?;
                if blob {
                    return Ok(());
                }
            }
            if until == Until::Grown && self.has_grown().map_err(|error| self.io("read", error))? {
                return Ok(());
            }
            wait(&self.state.answered, self.watch.as_ref()).map_err(|error| self.io("wait for", error))?;
        }
    }

    /// Returns another file that has the blob's bytes now, at least as many as were read.
    fn find_file(&self) -> io::Result<Option<Source>> {
        if let Some(watch) = &self.watch {
            watch.add(self.partial.path());
        }
        match self.partial.open() {
            Ok(file) if self.reads(&file)? || file.metadata()?.len() < self.at => Ok(None),
            Ok(file) => Ok(Some(Source::Growing(file))),
            // It is the blob now, or was removed, or cannot be read along: then the claim's answer
            // ends the wait.
            Err(_) => match self.dir.lookup(self.blob).map_err(io::Error::other)? {
                Found::Ready(cached) => Ok(Some(Source::Blob(cached))),
                Found::Unverified(..) | Found::Missing => Ok(None),
            },
        }
    }

    /// Reads from another file from now on.
    fn switch_to(&mut self, next: Source) -> Result<(), FollowError> {
        if let (Some(old), Some(new)) = (self.source.file(), next.file())
            && !self.reads(new).map_err(|error| self.io("read", error))?
            && !same_beginning(old, new, self.at).map_err(|error| self.io("read", error))?
        {
            return Err(FollowError::Different { blob: self.blob });
        }
        if let Source::Blob(_) = next {
            self.state.lock().abandoned = true;
        }
        self.source = next;
        Ok(())
    }

    /// Returns whether this is the file that is being read. That file is open, so no other one can
    /// have its inode number.
    fn reads(&self, file: &File) -> io::Result<bool> {
        let Some(mine) = self.source.file() else { return Ok(false) };
        let (mine, other) = (mine.metadata()?, file.metadata()?);
        Ok((mine.dev(), mine.ino()) == (other.dev(), other.ino()))
    }

    fn has_grown(&self) -> io::Result<bool> {
        Ok(self
            .source
            .file()
            .map(File::metadata)
            .transpose()?
            .is_some_and(|metadata| metadata.len() > self.at))
    }

    fn io(&self, operation: &'static str, error: io::Error) -> FollowError {
        failed(self.blob, CacheError::io(operation, self.partial.path())(error))
    }
}

/// What a follower waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Grown,
    End,
}

impl Read for Follow {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.check()?;
        loop {
            if let Some(file) = self.source.file() {
                let n = file.read_at(buf, self.at).map_err(|error| self.io("read", error))?;
                self.at += n as u64;
                match &self.source {
                    _ if n > 0 => return Ok(n),
                    Source::Blob(cached) if self.at == cached.size() => return Ok(0),
                    Source::Blob(_) => return Err(ErrorKind::UnexpectedEof.into()),
                    _ => {}
                }
            }
            self.advance(Until::Grown)?;
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.state.lock().abandoned = true;
    }
}

/// Watches the partial file, if the system has a watch left.
fn watch(partial: &Partial) -> Option<Watch> {
    let watch = partial.dir().and_then(Watch::new);
    watch
        .inspect_err(|error| {
            let path = partial.path().display();
            tracing::warn!(%path, %error, "cannot watch a download: its bytes are read when it ends");
        })
        .ok()
}
