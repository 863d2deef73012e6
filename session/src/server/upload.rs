//! The sink of a blob that a client stores: staged as it arrives, put into its transaction when it is complete, and kept
//! with its transaction when the connection is lost in the middle.

use std::sync::Arc;

use crate::io::Sink;
use blobferry_protocol::{Digest, Oid, Reply, RequestError, RequestId, Tid, TxnId};

use crate::server::core::ServerCore;
use crate::server::detached::{Part, TransactionLease};
use crate::server::mailbox::Mailbox;
use crate::server::strands::QUICK;
use crate::server::verified::VerifiedFile;

/// A [`StoreBlob`](blobferry_protocol::Request::StoreBlob) whose blob is on its way.
pub(super) struct Upload {
    pub(super) service: ServerCore,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) hold: Option<Arc<TransactionLease>>,
    pub(super) id: RequestId,
    pub(super) txn: TxnId,
    pub(super) oid: Oid,
    pub(super) base: Tid,
    pub(super) data: Vec<u8>,
    /// Where the bytes go. Before the transfer has begun: what is here from a connection before.
    pub(super) part: Option<Part>,
}

impl Upload {
    /// Whether it can go on; if not, the client is told why.
    fn checked(&self, result: Result<(), RequestError>) -> bool {
        result.map_err(|error| self.mailbox.reply(self.id, Err(error))).is_ok()
    }

    /// Begins, or goes on behind what is here.
    fn begin(&mut self, from: u64, size: u64) -> Result<(), RequestError> {
        let kept = self.part.take();
        if from > 0 {
            let fits = kept.filter(|part| (part.written, part.size) == (from, size));
            let part = fits.ok_or_else(|| RequestError::Mismatch {
                detail: format!("{from} of its {size} bytes are not here to go on from"),
            })?;
            self.part = Some(Part { request: self.id, ..part });
            return Ok(());
        }
        drop(kept); // first: what it occupies may be needed
        let stage = self.service.store().stage(size)?;
        self.part = Some(Part { request: self.id, stage, size, written: 0 });
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        let Some(part) = &mut self.part else { return Ok(()) };
        part.stage.write(bytes)?;
        part.written += bytes.len() as u64;
        Ok(())
    }

    fn complete(&mut self, digest: Digest) -> Result<(), RequestError> {
        let part =
            self.part.take().ok_or_else(|| RequestError::Failed { detail: "nothing was staged".into() })?;
        let staged = part.stage.complete(digest)?;
        self.service.counters().blobs_received.add(1);
        if let Some(stamp) = staged.stamp() {
            self.service.proofs().add(VerifiedFile { oid: self.oid, digest, stamp });
        }
        let data = std::mem::take(&mut self.data);
        let stored = self.service.store().store_blob(self.txn, self.oid, self.base, data, staged);
        stored.inspect(|()| self.hold.iter().for_each(|hold| hold.done(self.id)))
    }
}

impl Sink for Upload {
    fn is_quick(&self, size: u64) -> bool {
        size <= QUICK && self.service.store().is_inline(size) && self.service.pace().is_quick()
    }

    fn start(&mut self, from: u64, _: u64, size: u64) -> bool {
        let begun = self.begin(from, size);
        self.checked(begun)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.service.counters().bytes_received.add(bytes.len() as u64);
        let written = self.take(bytes);
        self.checked(written)
    }

    fn stop(mut self: Box<Self>, digest: Digest) {
        let service = self.service.clone();
        let result = service.pace().act(|| self.complete(digest));
        self.mailbox.reply(self.id, result.map(|()| Reply::Done));
    }

    /// Its request is answered already; or the connection is gone, and the next one may go on with it.
    fn abort(self: Box<Self>, reason: Option<RequestError>) {
        let Upload { hold, oid, part, .. } = *self;
        if let (None, Some(hold), Some(part)) = (reason, hold, part) {
            hold.keep(oid, part);
        }
    }
}
