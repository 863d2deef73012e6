//! Sinks for blobs that were asked for: into the cache, or into memory.

use blobferry_protocol::{Digest, RequestError};

use super::call::{CallError, Completion};
use crate::carry::{OnProgress, Progress, Sink};
use crate::{CacheError, CachedBlob, Download};

/// What a transfer has come to that ended early.
fn ended(reason: Option<RequestError>) -> CallError {
    match reason {
        Some(reason) => CallError::Refused(reason),
        None => CallError::Disconnected { reason: "it broke in the middle of a blob".into() },
    }
}

/// A blob on its way into the cache.
pub(super) struct ToCache {
    pub(super) download: Download,
    pub(super) progress: Option<OnProgress>,
    pub(super) moved: Progress,
    pub(super) done: Option<Completion<CachedBlob>>,
}

impl ToCache {
    fn checked(&mut self, result: Result<(), CacheError>) -> bool {
        match (result, self.done.take()) {
            (Err(error), Some(done)) => {
                done(Err(error.into()));
                false
            }
            (_, done) => {
                self.done = done;
                self.done.is_some()
            }
        }
    }
}

impl Sink for ToCache {
    fn start(&mut self, _: u64, _: u64, size: u64) -> bool {
        self.moved.total = size;
        if let Some(progress) = &self.progress {
            progress(self.moved);
        }
        let started = self.download.start(0, size);
        self.checked(started)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let written = self.download.write(bytes);
        self.moved.done += bytes.len() as u64;
        if let Some(progress) = &self.progress {
            progress(self.moved);
        }
        self.checked(written)
    }

    fn stop(mut self: Box<Self>, digest: Digest) {
        let finished = self.download.finish(digest);
        drop(self.download);
        if let Some(done) = self.done {
            done(finished.map_err(CallError::from));
        }
    }

    fn abort(self: Box<Self>, reason: Option<RequestError>) {
        // First the right to download goes to who else waits for it, then the bad news is told.
        drop(self.download);
        if let Some(done) = self.done {
            done(Err(ended(reason)));
        }
    }
}

/// A part of a blob on its way into memory.
pub(super) struct ToMemory {
    pub(super) bytes: Vec<u8>,
    pub(super) done: Completion<Vec<u8>>,
}

impl Sink for ToMemory {
    fn start(&mut self, _: u64, _: u64, _: u64) -> bool {
        true
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        true
    }

    fn stop(self: Box<Self>, _: Digest) {
        // The digest is the whole blob's: a part can not be checked against it.
        (self.done)(Ok(self.bytes));
    }

    fn abort(self: Box<Self>, reason: Option<RequestError>) {
        (self.done)(Err(ended(reason)));
    }
}
