//! Where blobs go that were asked for: into the cache, or into memory. When the connection is lost in the middle, they ask
//! for the rest.

use std::ops::Range;

use blobferry_protocol::{BlobId, Digest, RequestError};

use super::asks::Ask;
use super::call::{CallError, Completion};
use super::session::Session;
use crate::carry::{OnProgress, Progress, Sink};
use crate::{CachedBlob, Download};

/// A blob on its way.
pub(super) enum Target {
    /// All of it, into the cache.
    Cache(Box<ToCache>),
    /// A part of it, into memory.
    Memory(Box<ToMemory>),
}

pub(super) struct ToCache {
    session: Session,
    download: Download,
    progress: Option<OnProgress>,
    moved: Progress,
    /// Taken when it has failed: the sink is dropped then.
    done: Option<Completion<CachedBlob>>,
}

pub(super) struct ToMemory {
    session: Session,
    blob: BlobId,
    /// What is still to come.
    rest: Range<u64>,
    bytes: Vec<u8>,
    done: Completion<Vec<u8>>,
}

impl Target {
    pub(super) fn cache(
        session: Session,
        download: Download,
        progress: Option<OnProgress>,
        done: Completion<CachedBlob>,
    ) -> Target {
        let moved = Progress { done: 0, total: 0 };
        Target::Cache(Box::new(ToCache { session, download, progress, moved, done: Some(done) }))
    }

    pub(super) fn memory(
        session: Session,
        blob: BlobId,
        rest: Range<u64>,
        done: Completion<Vec<u8>>,
    ) -> Target {
        Target::Memory(Box::new(ToMemory { session, blob, rest, bytes: Vec::new(), done }))
    }

    /// Asks for what is missing.
    pub(super) fn ask(self) {
        let (session, blob, range) = match &self {
            Target::Cache(to) => (to.session.clone(), to.download.blob(), to.moved.done..u64::MAX),
            Target::Memory(to) => (to.session.clone(), to.blob, to.rest.clone()),
        };
        session.ask(Ask::Download { blob, range, target: self });
    }

    /// It will not come.
    pub(super) fn fail(self, error: CallError) {
        match self {
            Target::Cache(to) => {
                let ToCache { download, done, .. } = *to;
                // First the right to download goes to who else waits for it, then the bad news is told.
                drop(download);
                if let Some(done) = done {
                    done(Err(error));
                }
            }
            Target::Memory(to) => (to.done)(Err(error)),
        }
    }
}

impl ToCache {
    /// Begins the file, or goes on with it where it is.
    fn start(&mut self, from: u64, size: u64) -> Result<(), CallError> {
        if from == 0 {
            self.moved = Progress { done: 0, total: size };
            return Ok(self.download.start(size)?);
        }
        match (self.moved.done, self.moved.total) == (from, size) {
            true => Ok(()),
            false => Err(RequestError::Mismatch {
                detail: format!("it had {} bytes, and has {size} now", self.moved.total),
            }
            .into()),
        }
    }

    /// Whether it can go on; if not, who waits is told.
    fn checked(&mut self, result: Result<(), CallError>) -> bool {
        let Err(error) = result else { return true };
        if let Some(done) = self.done.take() {
            done(Err(error));
        }
        false
    }

    fn tell_progress(&self) {
        if let Some(progress) = &self.progress {
            progress(self.moved);
        }
    }
}

impl Sink for Target {
    fn start(&mut self, from: u64, _: u64, size: u64) -> bool {
        let Target::Cache(to) = self else { return true };
        let started = to.start(from, size);
        to.tell_progress();
        to.checked(started)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        match self {
            Target::Cache(to) => {
                let written = to.download.write(bytes).map_err(CallError::from);
                to.moved.done += bytes.len() as u64;
                to.tell_progress();
                to.checked(written)
            }
            Target::Memory(to) => {
                to.bytes.extend_from_slice(bytes);
                to.rest.start += bytes.len() as u64;
                true
            }
        }
    }

    fn stop(self: Box<Self>, digest: Digest) {
        match *self {
            Target::Cache(to) => {
                let ToCache { download, done, .. } = *to;
                let finished = download.finish(digest);
                if let Some(done) = done {
                    done(finished.map_err(CallError::from));
                }
            }
            // The digest is the whole blob's: a part can not be checked against it.
            Target::Memory(to) => (to.done)(Ok(to.bytes)),
        }
    }

    fn abort(self: Box<Self>, reason: Option<RequestError>) {
        match reason {
            // The connection was lost, or is about to end: the next one may bring the rest.
            None | Some(RequestError::Stopping) => self.ask(),
            Some(reason) => self.fail(reason.into()),
        }
    }
}
