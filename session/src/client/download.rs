//! Where a download goes: into the cache, or into memory. When a connection is lost, a download requests the rest of
//! its blob on the next one.

use std::ops::Range;

use blobferry_cache::{CacheError, CachedBlob, Download};
use blobferry_platform::progress::{OnProgress, Progress};
use blobferry_protocol::{BlobId, Digest, RequestError};

use crate::client::error::{CallError, Completion};
use crate::client::queue::{Destination, Queued};
use crate::client::shared::Session;
use crate::io::Sink;

/// A destination that takes a blob piece by piece.
trait DownloadTarget: Destination + 'static {
    fn session(&self) -> Session;

    /// Queues a request for what is missing.
    fn enqueue(self: Box<Self>)
    where
        Self: Sized,
    {
        self.session().enqueue(Queued::Download { to: self });
    }

    /// Begins at an offset of a blob of `size` bytes.
    fn begin(&mut self, from: u64, size: u64) -> Result<(), CacheError>;

    /// Takes the next bytes of a blob of `size` bytes.
    fn take(&mut self, bytes: &[u8], size: u64) -> Result<(), CacheError>;

    /// Takes the end.
    fn finish(self: Box<Self>, digest: Digest);

    /// Handles an error of the cache.
    fn failed(self: Box<Self>, error: CacheError);

    /// Discards what an earlier download has left, if any. The server has sent less than that.
    fn restart(&mut self) -> bool;
}

/// A whole blob that goes into the cache.
pub(super) struct CacheTarget {
    session: Session,
    download: Download,
    progress: Option<OnProgress>,
    done: Completion<CachedBlob>,
}

/// A part of a blob that goes to memory.
pub(super) struct MemoryTarget {
    session: Session,
    blob: BlobId,
    /// The range that is still missing.
    rest: Range<u64>,
    bytes: Vec<u8>,
    done: Completion<Vec<u8>>,
}

impl CacheTarget {
    pub(super) fn new(
        session: Session,
        download: Download,
        progress: Option<OnProgress>,
        done: Completion<CachedBlob>,
    ) -> CacheTarget {
        CacheTarget { session, download, progress, done }
    }

    fn report_progress(&self, size: u64) {
        if let Some(progress) = &self.progress {
            progress(Progress { done: self.download.written(), total: size });
        }
    }
}

impl Destination for CacheTarget {
    fn missing(&self) -> (BlobId, Range<u64>) {
        (self.download.blob(), self.download.written()..u64::MAX)
    }

    fn into_sink(self: Box<Self>) -> Box<dyn Sink> {
        DownloadSink::boxed(self)
    }

    fn fail(self: Box<Self>, error: CallError) {
        let CacheTarget { download, done, .. } = *self;
        // First: another caller that waits for the blob takes over the download. After a lost connection it may
        // resume from the bytes that have arrived.
        match &error {
            CallError::Disconnected { .. } => download.leave(),
            _ => drop(download),
        }
        done(Err(error));
    }
}

impl DownloadTarget for CacheTarget {
    fn session(&self) -> Session {
        self.session.clone()
    }

    fn begin(&mut self, from: u64, size: u64) -> Result<(), CacheError> {
        self.download.start(from, size)?;
        self.report_progress(size);
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], size: u64) -> Result<(), CacheError> {
        self.download.write(bytes)?;
        self.report_progress(size);
        Ok(())
    }

    fn finish(mut self: Box<Self>, digest: Digest) {
        match self.download.finish(digest) {
            Ok(cached) => {
                let CacheTarget { download, done, .. } = *self;
                drop(download);
                done(Ok(cached));
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed(self: Box<Self>, error: CacheError) {
        match error {
            // What an earlier download had left was of no use: the whole blob is requested.
            CacheError::Stale { .. } => self.enqueue(),
            error => self.fail(error.into()),
        }
    }

    fn restart(&mut self) -> bool {
        let written = self.download.written() > 0;
        if written {
            self.download.restart();
        }
        written
    }
}

impl MemoryTarget {
    /// Requests a part of a blob.
    pub(super) fn request(session: &Session, blob: BlobId, rest: Range<u64>, done: Completion<Vec<u8>>) {
        Box::new(MemoryTarget { session: session.clone(), blob, rest, bytes: Vec::new(), done }).enqueue();
    }
}

impl Destination for MemoryTarget {
    fn missing(&self) -> (BlobId, Range<u64>) {
        (self.blob, self.rest.clone())
    }

    fn into_sink(self: Box<Self>) -> Box<dyn Sink> {
        DownloadSink::boxed(self)
    }

    fn fail(self: Box<Self>, error: CallError) {
        (self.done)(Err(error));
    }
}

impl DownloadTarget for MemoryTarget {
    fn session(&self) -> Session {
        self.session.clone()
    }

    fn begin(&mut self, _: u64, _: u64) -> Result<(), CacheError> {
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], _: u64) -> Result<(), CacheError> {
        self.bytes.extend_from_slice(bytes);
        self.rest.start += bytes.len() as u64;
        Ok(())
    }

    /// Ignores the digest, which is the whole blob's: a part cannot be checked against it.
    fn finish(self: Box<Self>, _: Digest) {
        (self.done)(Ok(self.bytes));
    }

    fn failed(self: Box<Self>, error: CacheError) {
        self.fail(error.into());
    }

    fn restart(&mut self) -> bool {
        false
    }
}

impl Session {
    /// Downloads a blob into the cache. It resumes what an earlier download has left.
    pub(super) fn download(
        &self,
        mut download: Download,
        progress: Option<OnProgress>,
        done: Completion<CachedBlob>,
    ) {
        let session = self.clone();
        let target = |download| Box::new(CacheTarget::new(session, download, progress, done));
        if download.found() == 0 {
            return target(download).enqueue();
        }
        let resume = move || match download.resume() {
            Ok(_) => target(download).enqueue(),
            Err(error) => target(download).fail(error.into()),
        };
        self.workers().run(resume);
    }
}

/// The sink of a transfer. It drops its target as soon as the target fails.
struct DownloadSink<T> {
    target: Option<Box<T>>,
    size: u64,
}

impl<T: DownloadTarget> DownloadSink<T> {
    fn boxed(target: Box<T>) -> Box<dyn Sink> {
        Box::new(DownloadSink { target: Some(target), size: 0 })
    }

    fn checked(&mut self, result: Result<(), CacheError>) -> bool {
        let Err(error) = result else { return self.target.is_some() };
        if let Some(target) = self.target.take() {
            target.failed(error);
        }
        false
    }
}

impl<T: DownloadTarget> Sink for DownloadSink<T> {
    fn start(&mut self, from: u64, _: u64, size: u64) -> bool {
        self.size = size;
        let begun = self.target.as_mut().map_or(Ok(()), |target| target.begin(from, size));
        self.checked(begun)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let taken = self.target.as_mut().map_or(Ok(()), |target| target.take(bytes, self.size));
        self.checked(taken)
    }

    fn stop(self: Box<Self>, digest: Digest) {
        if let Some(target) = self.target {
            target.finish(digest);
        }
    }

    fn abort(self: Box<Self>, reason: Option<RequestError>) {
        match (self.target, reason) {
            // The connection was lost, or is about to end: the next one may bring the rest.
            (Some(target), None | Some(RequestError::Stopping)) => target.enqueue(),
            (Some(mut target), Some(reason)) => {
                // The server's blob is shorter than what an earlier download has left.
                if matches!(reason, RequestError::BadRange { .. }) && target.restart() {
                    target.enqueue();
                } else {
                    target.fail(reason.into());
                }
            }
            (None, _) => {}
        }
    }
}
