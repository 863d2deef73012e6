//! Reading a blob while it is still being downloaded, by whichever process.
//!
//! A follower reads the partial file as it grows, and learns the end like everybody who wants the blob: it has claimed
//! it, and waits in state. Until it is answered it sleeps, and the kernel wakes it when the file has grown, or is gone.
//!
//! Bytes that it has delivered already can not be taken back. So before it says that this was all, it makes sure that
//! they were the blob's. A partial file is only ever added to, and becomes the blob by a rename: if what was read is
//! the file that the blob is, nothing is left to be follower. If the download began again from nothing, it is another file,
//! and the delivered bytes of the two are compared.

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
/// It reads like a file whose end is yet to come: [`Read::read`] waits for bytes. **The end of the file is a promise**:
/// it is reported only after the blob has come to be in the cache, whole and with the right digest, and when the bytes
/// that were read are the blob's. Anything else ends in an error, in which a [`FollowError`] is. So who must not use
/// wrong bytes waits for the end before he does.
#[derive(Debug)]
pub struct Follow {
    dir: CacheDir,
    blob: BlobId,
    partial: Partial,
    state: Arc<FollowState>,
    /// `None` where the system has none left. Then bytes come when the state is answered.
    watch: Option<Watch>,
    source: Source,
    /// How many bytes were read.
    at: u64,
    failed: Option<FollowError>,
}

/// Where the bytes come from.
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
    /// Reads a blob that is there, or is being downloaded by any thread or process of this machine: its bytes as they
    /// arrive. It is an error when nobody downloads it, or nobody goes on with it. Waits for nothing yet.
    ///
    /// Where the one who downloads dies or gives up, and this follower is the next in state, it lets the others behind it
    /// go on, and ends with [`FollowError::Unattended`]. Who can download himself takes [`Cache::follow_with`].
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
    /// [`CacheError::Io`].
    pub fn follow(&self, blob: BlobId) -> Result<Follow, CacheError> {
        self.follow_with(blob, |download, _unattended| drop(download))
    }

    /// The same for who can download the blob where nobody else does: should it be the follower's turn,
    /// `on_download` is given the duty, and goes on with it, while the follower reads what arrives. The end it tells
    /// with [`FollowEnd::tell`].
    ///
    /// `on_download` is called at most once, at once or from another thread, and not when the [`Follow`] was dropped
    /// before. Like the callback of [`Cache::claim_with`], it should be quick, and not wait for anything.
    ///
    /// # Errors
    /// [`CacheError::Io`].
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
        // Where the answer is there already, there is nothing to watch.
        let has_answer = state.lock().has_answer;
        let watch = if has_answer { None } else { watch(&partial) };
        let dir = self.0.clone();
        Ok(Follow { dir, blob, partial, state, watch, source: Source::Nothing, at: 0, failed: None })
    }
}

impl Follow {
    /// The blob.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// How many bytes the blob has, as far as that is known: when something was read, in general. While it is
    /// downloaded this is what the server says, and it stays unknown where the file system has no extended attributes.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        match &self.source {
            Source::Nothing => None,
            Source::Growing(file) => integrity::announced(file),
            Source::Blob(cached) => Some(cached.size()),
        }
    }

    /// Waits for the end, whatever was not read yet, and returns the blob: whole, and of the right digest, and what
    /// was read were its first bytes.
    ///
    /// # Errors
    /// [`FollowError`].
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

    /// What has failed stays failed.
    fn check(&self) -> Result<(), FollowError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Waits until there is more to read, or until the blob is there.
    fn advance(&mut self, until: Until) -> Result<(), FollowError> {
        let advanced = self.try_advance(until);
        self.failed = advanced.as_ref().err().cloned();
        advanced
    }

    fn try_advance(&mut self, until: Until) -> Result<(), FollowError> {
        loop {
            // First: what happens after that is heard of, and what happened before is seen.
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

    /// Looks whether another file than the one that is read has the blob's bytes now: at least as many as were read.
    fn find_file(&self) -> io::Result<Option<Source>> {
        if let Some(watch) = &self.watch {
            watch.add(self.partial.path());
        }
        match self.partial.open() {
            Ok(file) if self.reads(&file)? || file.metadata()?.len() < self.at => Ok(None),
            Ok(file) => Ok(Some(Source::Growing(file))),
            // It is the blob now, or was removed; or it can not be read along, and the state will tell the end.
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

    /// Whether this is the file that is being read. It is open, so no other one can have its number.
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

/// A watch over the partial file, where the system has one left.
fn watch(partial: &Partial) -> Option<Watch> {
    let watch = partial.dir().and_then(Watch::new);
    watch
        .inspect_err(|error| {
            let path = partial.path().display();
            tracing::warn!(%path, %error, "can not watch a download grow: what it brings is read at its end");
        })
        .ok()
}
