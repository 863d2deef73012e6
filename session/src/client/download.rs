//! Where blobs go that were asked for: into the cache, or into memory. When the connection is lost in the middle, they ask
//! for the rest.

use std::ops::Range;

use blobferry_protocol::{BlobId, Digest, RequestError};

use crate::client::error::{CallError, Completion};
use crate::client::session::Session;
use crate::client::state::Queued;
use crate::io::Sink;
use blobferry_cache::{CacheError, CachedBlob, Download};
use blobferry_platform::progress::{OnProgress, Progress};

/// A blob on its way.
pub(super) enum DownloadTarget {
    /// All of it, into the cache.
    Cache(Box<CacheTarget>),
    /// A part of it, into memory.
    Memory(Box<MemoryTarget>),
}

pub(super) struct CacheTarget {
    session: Session,
    download: Download,
    progress: Option<OnProgress>,
    done: Completion<CachedBlob>,
}

pub(super) struct MemoryTarget {
    session: Session,
    blob: BlobId,
    /// What is still to come.
    rest: Range<u64>,
    bytes: Vec<u8>,
    done: Completion<Vec<u8>>,
}

impl DownloadTarget {
    pub(super) fn memory(
        session: Session,
        blob: BlobId,
        rest: Range<u64>,
        done: Completion<Vec<u8>>,
    ) -> DownloadTarget {
        DownloadTarget::Memory(Box::new(MemoryTarget { session, blob, rest, bytes: Vec::new(), done }))
    }

    pub(super) fn cache(
        session: Session,
        download: Download,
        progress: Option<OnProgress>,
        done: Completion<CachedBlob>,
    ) -> DownloadTarget {
        DownloadTarget::Cache(Box::new(CacheTarget { session, download, progress, done }))
    }

    /// Asks for what is missing.
    pub(super) fn enqueue(self) {
        let (session, blob, range) = match &self {
            DownloadTarget::Cache(to) => {
                (to.session.clone(), to.download.blob(), to.download.written()..u64::MAX)
            }
            DownloadTarget::Memory(to) => (to.session.clone(), to.blob, to.rest.clone()),
        };
        session.enqueue(Queued::Download { blob, range, target: self });
    }

    /// It will not come.
    pub(super) fn fail(self, error: CallError) {
        match self {
            DownloadTarget::Cache(to) => {
                let CacheTarget { download, done, .. } = *to;
                // First the right to download goes to who else waits for it, then the bad news is told. Only where the
                // server is just not there, what has come is of use to the next one.
                match &error {
                    CallError::Disconnected { .. } => download.leave(),
                    _ => drop(download),
                }
                done(Err(error));
            }
            DownloadTarget::Memory(to) => (to.done)(Err(error)),
        }
    }

    fn begin(&mut self, from: u64, size: u64) -> Result<(), CacheError> {
        let DownloadTarget::Cache(to) = self else { return Ok(()) };
        to.download.start(from, size)?;
        to.tell_progress(size);
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], size: u64) -> Result<(), CacheError> {
        match self {
            DownloadTarget::Cache(to) => {
                to.download.write(bytes)?;
                to.tell_progress(size);
            }
            DownloadTarget::Memory(to) => {
                to.bytes.extend_from_slice(bytes);
                to.rest.start += bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// All has come.
    fn finish(self, digest: Digest) {
        match self {
            DownloadTarget::Cache(mut to) => match to.download.finish(digest) {
                Ok(cached) => {
                    let CacheTarget { download, done, .. } = *to;
                    drop(download);
                    done(Ok(cached));
                }
                Err(error) => DownloadTarget::Cache(to).failed(error),
            },
            // The digest is the whole blob's: a part can not be checked against it.
            DownloadTarget::Memory(to) => (to.done)(Ok(to.bytes)),
        }
    }

    /// The cache can not go on. What somebody before had left was of no use: then all of it is asked for.
    fn failed(self, error: CacheError) {
        match error {
            CacheError::Stale { .. } => self.enqueue(),
            error => self.fail(error.into()),
        }
    }
}

impl CacheTarget {
    fn tell_progress(&self, size: u64) {
        if let Some(progress) = &self.progress {
            progress(Progress { done: self.download.written(), total: size });
        }
    }
}

impl Session {
    /// Downloads a blob into the cache, going on with what somebody before has left of it.
    pub(super) fn download(
        &self,
        mut download: Download,
        progress: Option<OnProgress>,
        done: Completion<CachedBlob>,
    ) {
        let session = self.clone();
        let target = |download| DownloadTarget::cache(session, download, progress, done);
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

/// A transfer to a target, which is taken out of it as soon as it fails.
pub(super) struct DownloadSink {
    target: Option<DownloadTarget>,
    size: u64,
}

impl DownloadSink {
    pub(super) fn new(target: DownloadTarget) -> DownloadSink {
        DownloadSink { target: Some(target), size: 0 }
    }

    fn checked(&mut self, result: Result<(), CacheError>) -> bool {
        let Err(error) = result else { return self.target.is_some() };
        if let Some(target) = self.target.take() {
            target.failed(error);
        }
        false
    }
}

impl Sink for DownloadSink {
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
            // More was left by somebody before than there is.
            (Some(DownloadTarget::Cache(mut to)), Some(RequestError::BadRange { .. }))
                if to.download.written() > 0 =>
            {
                to.download.restart();
                DownloadTarget::Cache(to).enqueue();
            }
            (Some(target), Some(reason)) => target.fail(reason.into()),
            (None, _) => {}
        }
    }
}
