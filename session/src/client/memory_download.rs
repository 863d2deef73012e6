//! Loading a blob into memory: a small one without a file of its own, a larger one through a file.

use std::ops::Range;

use blobferry_cache::{Cache, CachedBlob, Download, SmallClaim};
use blobferry_platform::os::Job;
use blobferry_protocol::{BlobId, Digest, RequestError};
use bytes::Bytes;

use crate::client::download::CacheTarget;
use crate::client::error::{CallError, Completion};
use crate::client::queue::{Destination, MemoryDestination, Queued};
use crate::client::shared::{Session, read_range};
use crate::io::Sink;

/// A small blob that is wanted in memory.
struct MemoryDownload {
    session: Session,
    download: Download,
    done: Completion<Bytes>,
}

impl Destination for MemoryDownload {
    /// All of the blob: nothing is kept of a transfer that was cut off.
    fn missing(&self) -> (BlobId, Range<u64>) {
        (self.download.blob(), 0..u64::MAX)
    }

    /// The blob is not small: it goes to a file.
    fn into_sink(self: Box<Self>) -> Box<dyn Sink> {
        let MemoryDownload { session, download, done } = *self;
        let done = read_then(session.clone(), done);
        Box::new(CacheTarget::new(session, download, None, done)).into_sink()
    }

    fn fail(self: Box<Self>, error: CallError) {
        let MemoryDownload { download, done, .. } = *self;
        // First: another caller that waits for the blob takes over the download.
        drop(download);
        done(Err(error));
    }
}

impl MemoryDestination for MemoryDownload {
    fn enqueue(self: Box<Self>) {
        let session = self.session.clone();
        session.enqueue(Queued::Load { to: self });
    }

    fn finish(self: Box<Self>, bytes: Bytes, digest: Digest) {
        let MemoryDownload { session, download, done } = *self;
        let mut write: Option<Job> = None;
        match download.finish_small(&bytes, digest, |job| write = Some(job)) {
            Ok(()) => done(Ok(bytes)),
            Err(error) => done(Err(error.into())),
        }
        // Last: the caller does not wait for the write.
        if let Some(write) = write {
            session.workers().run(write);
        }
    }

    fn abort(self: Box<Self>, reason: RequestError) {
        match reason {
            // The server is stopping: the next connection may bring the blob.
            RequestError::Stopping => self.enqueue(),
            reason => self.fail(reason.into()),
        }
    }
}

impl Session {
    /// Loads a blob into memory, whole and verified: from the cache, from the server, or from a download already in
    /// progress.
    ///
    /// A small blob, of at most [`Cache::SMALL`] bytes, is cached for all processes of the machine without a file of
    /// its own. A larger one goes through a file. The calling thread reads a small blob that is cached; otherwise the
    /// call does not block.
    pub fn load_bytes(&self, blob: BlobId, done: impl FnOnce(Result<Bytes, CallError>) + Send + 'static) {
        let session = self.clone();
        self.cache().claim_small_with(blob, move |claim| match claim {
            Ok(SmallClaim::Bytes(bytes)) => done(Ok(bytes)),
            Ok(SmallClaim::File(cached)) => session.read_whole(cached, Box::new(done)),
            // A download that was cut off has left a part: in general the blob is not small.
            Ok(SmallClaim::Download(download)) if download.found() > 0 => {
                let done = read_then(session.clone(), Box::new(done));
                session.download(download, None, done);
            }
            Ok(SmallClaim::Download(download)) => {
                let done = Box::new(done);
                let to = Box::new(MemoryDownload { session: session.clone(), download, done });
                session.cache().when_small_fits(move || to.enqueue());
            }
            Err(error) => done(Err(error.into())),
        });
    }

    fn read_whole(&self, cached: CachedBlob, done: Completion<Bytes>) {
        let size = cached.size();
        let read = move || done(read_range(&cached, 0..size).map(Bytes::from));
        match size <= Cache::SMALL {
            true => read(),
            false => self.workers().run(read),
        }
    }
}

/// Returns a completion that reads the whole file it is called with.
fn read_then(session: Session, done: Completion<Bytes>) -> Completion<CachedBlob> {
    Box::new(move |cached| match cached {
        Ok(cached) => session.read_whole(cached, done),
        Err(error) => done(Err(error)),
    })
}
