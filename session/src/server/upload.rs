//! The sink of a blob that a client stores. The blob is staged as it arrives, and put into its transaction when it is
//! complete. If the connection is lost in the middle, the staged part is retained with the detached transaction.

use std::sync::Arc;

use blobferry_protocol::{Digest, Oid, Reply, RequestError, RequestId, Tid, TxnId};

use crate::io::Sink;
use crate::server::core::ServerCore;
use crate::server::detached::{Part, TransactionLease};
use crate::server::mailbox::Mailbox;
use crate::server::message::Message;
use crate::server::strands::QUICK_BYTES;
use crate::server::verified::VerifiedFile;

/// A [`StoreBlob`](blobferry_protocol::Request::StoreBlob) whose blob is arriving.
pub(super) struct Upload {
    pub(super) core: ServerCore,
    pub(super) mailbox: Arc<Mailbox<Message>>,
    pub(super) lease: Option<Arc<TransactionLease>>,
    pub(super) id: RequestId,
    pub(super) txn: TxnId,
    pub(super) oid: Oid,
    pub(super) base: Tid,
    pub(super) data: Vec<u8>,
    /// Where the bytes go. Before the transfer begins, this is the part from an earlier connection.
    pub(super) part: Option<Part>,
}

impl Upload {
    /// Returns whether the upload can go on. Answers the request if not.
    fn checked(&self, result: Result<(), RequestError>) -> bool {
        result.map_err(|error| self.mailbox.reply(self.id, Err(error))).is_ok()
    }

    /// Begins the upload, or resumes it behind the retained part.
    fn begin(&mut self, from: u64, size: u64) -> Result<(), RequestError> {
        let retained = self.part.take();
        if from > 0 {
            let fits = retained.filter(|part| (part.written, part.size) == (from, size));
            let part = fits.ok_or_else(|| RequestError::Mismatch {
                detail: format!("{from} of its {size} bytes are not here to go on from"),
            })?;
            self.part = Some(Part { request: self.id, ..part });
            return Ok(());
        }
        drop(retained); // first: its space may be needed
        let stage = self.core.store().stage(size)?;
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
        self.core.counters().blobs_received.add(1);
        if let Some(stamp) = staged.stamp() {
            self.core.verified().add(VerifiedFile { oid: self.oid, digest, stamp });
        }
        let data = std::mem::take(&mut self.data);
        let stored = self.core.store().store_blob(self.txn, self.oid, self.base, data, staged);
        stored.inspect(|()| self.lease.iter().for_each(|lease| lease.done(self.id)))
    }
}

impl Sink for Upload {
    fn is_quick(&self, size: u64) -> bool {
        size <= QUICK_BYTES && self.core.store().is_inline(size) && self.core.inline_policy().allows()
    }

    fn start(&mut self, from: u64, _: u64, size: u64) -> bool {
        let begun = self.begin(from, size);
        self.checked(begun)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.core.counters().bytes_received.add(bytes.len() as u64);
        let written = self.take(bytes);
        self.checked(written)
    }

    fn stop(mut self: Box<Self>, digest: Digest) {
        let core = self.core.clone();
        let result = core.inline_policy().run(|| self.complete(digest));
        self.mailbox.reply(self.id, result.map(|()| Reply::Done));
    }

    /// Retains what has arrived if the connection is lost: the next one may resume it. In the other cases the request is
    /// answered already.
    fn abort(self: Box<Self>, reason: Option<RequestError>) {
        let Upload { lease, oid, part, .. } = *self;
        if let (None, Some(lease), Some(part)) = (reason, lease, part) {
            lease.retain_part(oid, part);
        }
    }
}
