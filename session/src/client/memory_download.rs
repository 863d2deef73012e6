//! Small blobs on their way to memory: collected on the thread that receives them, without another one.
//!
//! While the session is locked their bytes are only copied together. They are hashed, handed out and left to the cache when it
//! is free again. A blob that turns out not to be small goes the way of all others, into a file.

use std::collections::BTreeMap;

use blobferry_protocol::{BlobId, Digest, RequestError, Slice, TransferEvent, TransferId};
use bytes::Bytes;

use crate::client::download::DownloadTarget;
use crate::client::error::{CallError, Completion};
use crate::client::session::{Session, read_range};
use crate::client::state::Queued;
use blobferry_cache::{Cache, CachedBlob, Download, SmallClaim};
use blobferry_platform::os::Job;

/// A blob whose bytes are wanted.
pub(super) struct MemoryDownload {
    session: Session,
    download: Download,
    done: Completion<Bytes>,
}

/// The blobs that are being collected.
#[derive(Default)]
pub(super) struct MemoryDownloads {
    blobs: BTreeMap<TransferId, (Box<MemoryDownload>, Vec<u8>)>,
    /// Up to where bytes were taken since somebody asked.
    stored: Vec<(TransferId, u64)>,
}

/// What has come of an event of a transfer.
pub(super) enum Collected {
    /// It goes on.
    Some,
    /// All bytes of a blob are there.
    All(Box<MemoryDownload>, Bytes, Digest),
    /// The event is for the sinks. Where there is a target, the transfer has been collected so far: it is not small.
    Elsewhere(TransferEvent, Option<DownloadTarget>),
    /// The transfer has failed.
    Aborted(Box<MemoryDownload>, RequestError),
}

impl MemoryDownloads {
    /// A transfer may begin.
    pub(super) fn expect(&mut self, transfer: TransferId, to: Box<MemoryDownload>) {
        self.blobs.insert(transfer, (to, Vec::new()));
    }

    /// A transfer will not begin, or not go on.
    pub(super) fn remove(&mut self, transfer: TransferId) -> Option<Box<MemoryDownload>> {
        self.blobs.remove(&transfer).map(|(to, _)| to)
    }

    /// None of them will go on.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Box<MemoryDownload>> + use<> {
        std::mem::take(&mut self.blobs).into_values().map(|(to, _)| to)
    }

    /// Something happens to a transfer.
    pub(super) fn event(&mut self, event: TransferEvent) -> Collected {
        match event {
            TransferEvent::Started { transfer, size, .. } => match self.blobs.get_mut(&transfer) {
                Some((_, bytes)) if size <= Cache::SMALL => {
                    bytes.reserve_exact(size as usize);
                    Collected::Some
                }
                _ => Collected::Elsewhere(event, self.remove(transfer).map(|to| to.into_file())),
            },
            TransferEvent::Stopped { transfer, digest } => match self.blobs.remove(&transfer) {
                Some((to, bytes)) => Collected::All(to, bytes.into(), digest),
                None => Collected::Elsewhere(event, None),
            },
            TransferEvent::Aborted { transfer, ref reason } => match self.remove(transfer) {
                Some(to) => Collected::Aborted(to, reason.clone()),
                None => Collected::Elsewhere(event, None),
            },
        }
    }

    /// Takes payload; `false` where it is for the sinks.
    pub(super) fn payload(&mut self, slice: Slice, payload: &[u8]) -> bool {
        let Some((_, bytes)) = self.blobs.get_mut(&slice.transfer) else { return false };
        bytes.extend_from_slice(payload);
        let upto = slice.offset + slice.len;
        match self.stored.last_mut() {
            Some((transfer, stored)) if *transfer == slice.transfer => *stored = upto,
            _ => self.stored.push((slice.transfer, upto)),
        }
        true
    }

    /// Up to where bytes were taken since this was asked last.
    pub(super) fn take_stored(&mut self) -> impl Iterator<Item = (TransferId, u64)> + '_ {
        self.stored.drain(..)
    }
}

impl MemoryDownload {
    pub(super) fn blob(&self) -> BlobId {
        self.download.blob()
    }

    /// Asks for the blob, from its first byte.
    pub(super) fn enqueue(self: Box<Self>) {
        let session = self.session.clone();
        session.enqueue(Queued::Load { to: self });
    }

    /// All bytes have come.
    pub(super) fn finish(self, bytes: Bytes, digest: Digest) {
        let MemoryDownload { session, download, done } = self;
        let mut write: Option<Job> = None;
        match download.finish_small(&bytes, digest, |job| write = Some(job)) {
            Ok(()) => done(Ok(bytes)),
            Err(error) => done(Err(error.into())),
        }
        // Who waits is answered first.
        if let Some(write) = write {
            session.workers().run(write);
        }
    }

    /// The server does not send it, or not all of it.
    pub(super) fn abort(self: Box<Self>, reason: RequestError) {
        match reason {
            // The next connection may bring it.
            RequestError::Stopping => self.enqueue(),
            reason => self.fail(reason.into()),
        }
    }

    /// It will not come.
    pub(super) fn fail(self, error: CallError) {
        let MemoryDownload { download, done, .. } = self;
        // First the right to download goes to who else waits for it.
        drop(download);
        done(Err(error));
    }

    /// It is not small.
    fn into_file(self) -> DownloadTarget {
        let MemoryDownload { session, download, done } = self;
        let done = read_then(session.clone(), done);
        DownloadTarget::cache(session, download, None, done)
    }
}

impl Session {
    /// Loads a blob into memory: from the cache, from whoever is downloading it already, or from the server. A small one (of
    /// at most [`Cache::SMALL`] bytes) is kept for all processes of the machine without a file of its own; a larger one goes
    /// through a file. What is in the cache is read by the calling thread, if it is small; nothing else makes it wait.
    pub fn load_bytes(&self, blob: BlobId, done: Completion<Bytes>) {
        let session = self.clone();
        self.cache().claim_small_with(blob, move |claim| match claim {
            Ok(SmallClaim::Bytes(bytes)) => done(Ok(bytes)),
            Ok(SmallClaim::File(cached)) => session.read_whole(cached, done),
            // What somebody has left of it is more than a small one would be, in general.
            Ok(SmallClaim::Download(download)) if download.found() > 0 => {
                let done = read_then(session.clone(), done);
                session.download(download, None, done);
            }
            Ok(SmallClaim::Download(download)) => {
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

/// Reads all of the file that comes.
fn read_then(session: Session, done: Completion<Bytes>) -> Completion<CachedBlob> {
    Box::new(move |cached| match cached {
        Ok(cached) => session.read_whole(cached, done),
        Err(error) => done(Err(error)),
    })
}
