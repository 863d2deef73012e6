//! The right, and the duty, to download one blob.

use blobferry_protocol::{BlobId, Digest};

use crate::cache::Cache;
use crate::cached_blob::CachedBlob;
use crate::claim::partial::Partial;
use crate::error::CacheError;
use blobferry_platform::blobdir::BlobWriter;
use blobferry_platform::blobdir::WriteError;

/// The right, and the duty, to download one blob, while everybody else on the machine waits for it.
///
/// Dropped before it is finished, it removes the bytes that it has worked on, and the next one who waits becomes the
/// downloader, in this process or another. To leave him the bytes, there is [`Download::leave`]. When the process
/// dies, the next one finds them, too: [`Download::found`] says how many.
///
/// Where bytes go on, these are the steps: [`Download::resume`], which may be left out; ask the server for the bytes
/// from [`Download::written`] on; [`Download::start`]; [`Download::write`]; and, where the connection breaks, the same
/// once more on the next one. Whenever something answers [`CacheError::Stale`], what was there was not the blob's, and
/// nothing of it is left: ask from [`Download::written`] again, which is 0 then.
///
/// The calls on it write to disk, and may block for as long as that takes.
#[derive(Debug)]
pub struct Download {
    cache: Cache,
    blob: BlobId,
    partial: Partial,
    found: u64,
    writer: Option<BlobWriter>,
    /// Whether the writer began with bytes that were found. Nobody knows yet whether these are the blob's.
    resumed: bool,
    /// Whether the blob is there.
    finished: bool,
}

impl Download {
    pub(crate) fn new(cache: Cache, blob: BlobId) -> Download {
        let partial = Partial::of(cache.layout(), blob);
        let found = partial.len();
        Download { cache, blob, partial, found, writer: None, resumed: false, finished: false }
    }

    /// The blob to download.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// How many bytes somebody has left who died, or left, before all of them had come. [`Download::resume`] goes on
    /// with them; without it they are removed when the download is started.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Goes on with the bytes that were found: reads them, to hash them. Returns how many they are; 0 where there are
    /// none, or none that can be used: what is no regular file of this user's alone, or unreadable, is removed.
    ///
    /// After [`Download::start`] nothing happens.
    ///
    /// # Errors
    /// [`CacheError::Finished`].
    pub fn resume(&mut self) -> Result<u64, CacheError> {
        self.unfinished()?;
        if self.writer.is_none() && self.found > 0 {
            match self.partial.resume(self.cache.room()) {
                Ok(writer) => {
                    self.writer = Some(writer);
                    self.resumed = true;
                }
                Err(error) => {
                    let path = self.partial.path().display();
                    tracing::warn!(blob = %self.blob, %path, %error, "can not go on with what was downloaded");
                    self.restart();
                }
            }
        }
        Ok(self.written())
    }

    /// How many bytes are there, of those that this download has found or written: the offset of the next one.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.writer.as_ref().map_or(0, BlobWriter::written)
    }

    /// Bytes will come, from the offset `from` of a blob of `size` bytes. Reserves room for them. From 0 it begins
    /// with nothing, whatever was there; else `from` must be [`Download::written`].
    ///
    /// # Errors
    /// [`CacheError::Stale`] where the bytes do not fit those that are there, or the size is another one than before;
    /// [`CacheError::Write`], with [`WriteError::Full`] where the cache's limit leaves no room, and
    /// [`WriteError::NoSpace`] where the disk is too full; [`CacheError::Finished`].
    pub fn start(&mut self, from: u64, size: u64) -> Result<(), CacheError> {
        self.unfinished()?;
        if from == 0 {
            self.restart(); // first: what it occupies may be needed
            let mut writer = self.partial.create(self.cache.room()).map_err(self.failed())?;
            writer.expect(size).map_err(self.failed())?;
            writer.announce();
            self.writer = Some(writer);
            return Ok(());
        }
        let failed = self.failed();
        match &mut self.writer {
            Some(writer) if writer.written() == from && fits(writer, size) => {
                writer.expect(size).map_err(failed)
            }
            _ => {
                self.restart();
                Err(CacheError::Stale { blob: self.blob })
            }
        }
    }

    /// Forgets all bytes that are there.
    pub fn restart(&mut self) {
        if self.finished {
            return; // somebody else may be in charge of the file of that name
        }
        let opened = self.writer.take().is_some();
        if !opened
            && self.found > 0
            && let Err(error) = self.partial.remove(self.cache.room())
        {
            let path = self.partial.path().display();
            tracing::warn!(blob = %self.blob, %path, %error, "can not remove a part of a download");
        }
        self.found = 0;
        self.resumed = false;
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`CacheError::Write`] where more bytes come than were announced, or the disk fails, after which nothing of the
    /// bytes is left; [`CacheError::NotStarted`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        let writer = self.writer.as_mut().filter(|writer| writer.expected().is_some());
        let written = writer.ok_or(CacheError::NotStarted { blob: self.blob })?.write(bytes);
        if let Err(WriteError::Full { .. } | WriteError::NoSpace { .. } | WriteError::Io { .. }) = written {
            self.restart();
        }
        written.map_err(self.failed())
    }

    /// Ends the download: if all bytes are there, and have this digest, the file becomes the blob, and everybody who
    /// waits is given it.
    ///
    /// # Errors
    /// [`CacheError::Stale`] where the digest is another one, and some bytes were found and not downloaded: then it can
    /// be started again. [`CacheError::Write`] where the bytes are not the blob's, or the disk fails;
    /// [`CacheError::NotStarted`]. Nothing of the bytes is left. The next one who waits becomes the downloader as
    /// soon as this one is dropped.
    pub fn finish(&mut self, digest: Digest) -> Result<CachedBlob, CacheError> {
        let writer = self.writer.take_if(|writer| writer.expected().is_some());
        let writer = writer.ok_or(CacheError::NotStarted { blob: self.blob })?;
        let resumed = std::mem::take(&mut self.resumed);
        let complete = match writer.complete_checked(digest) {
            Err(WriteError::Digest { .. }) if resumed => return Err(CacheError::Stale { blob: self.blob }),
            complete => complete.map_err(self.failed())?,
        };
        let cached = self.cache.publish(self.blob, complete.file, Some(digest)).map_err(self.failed())?;
        self.finished = true;
        self.cache.settle(self.blob);
        Ok(cached)
    }

    /// Gives up the duty, and leaves the bytes to the next one who has it: whoever waits, or comes later.
    pub fn leave(mut self) {
        if let Some(writer) = self.writer.take() {
            writer.keep();
        }
    }

    /// The bytes are in memory: whoever writes them answers all who wait for the blob.
    pub(crate) fn leave_to_writer(mut self) -> (Cache, BlobId) {
        self.restart();
        self.finished = true;
        (self.cache.clone(), self.blob)
    }

    fn unfinished(&self) -> Result<(), CacheError> {
        match self.finished {
            true => Err(CacheError::Finished { blob: self.blob }),
            false => Ok(()),
        }
    }

    fn failed(&self) -> impl FnOnce(WriteError) -> CacheError + use<> {
        let blob = self.blob;
        move |source| CacheError::Write { blob, source }
    }
}

/// Whether what was written can be the beginning of `size` bytes.
fn fits(writer: &BlobWriter, size: u64) -> bool {
    writer.written() <= size && writer.expected().is_none_or(|expected| expected == size)
}

impl Drop for Download {
    fn drop(&mut self) {
        self.writer = None; // before the next one begins: it would take away his file
        if !self.finished {
            self.cache.give_up(self.blob);
        }
    }
}
