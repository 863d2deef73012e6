//! The sink of a blob that a client stores: staged as it arrives, put into its transaction when it is complete.

use std::sync::Arc;

use blobferry_cache::carry::Sink;
use blobferry_protocol::{Digest, Oid, Reply, RequestError, RequestId, Tid, TxnId};

use super::mailbox::Mailbox;
use super::service::Service;
use crate::Stage;

/// A [`StoreBlob`](blobferry_protocol::Request::StoreBlob) whose blob is on its way.
pub(super) struct Upload {
    pub(super) service: Service,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) id: RequestId,
    pub(super) txn: TxnId,
    pub(super) oid: Oid,
    pub(super) base: Tid,
    pub(super) data: Vec<u8>,
    /// Where the bytes go, from the start of the transfer on.
    pub(super) stage: Option<Box<dyn Stage>>,
}

impl Upload {
    /// Whether it can go on; if not, the client is told why.
    fn checked(&self, result: Result<(), RequestError>) -> bool {
        result.map_err(|error| self.mailbox.reply(self.id, Err(error))).is_ok()
    }

    fn complete(&mut self, digest: Digest) -> Result<(), RequestError> {
        let stage =
            self.stage.take().ok_or_else(|| RequestError::Failed { detail: "nothing was staged".into() })?;
        let staged = stage.complete(digest)?;
        self.service.counters().blobs_received.add(1);
        let data = std::mem::take(&mut self.data);
        self.service.store().store_blob(self.txn, self.oid, self.base, data, staged)
    }
}

impl Sink for Upload {
    fn start(&mut self, _: u64, _: u64, size: u64) -> bool {
        let staged = self.service.store().stage(size).map(|stage| self.stage = Some(stage));
        self.checked(staged)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.service.counters().bytes_received.add(bytes.len() as u64);
        let written = self.stage.as_mut().map_or(Ok(()), |stage| stage.write(bytes));
        self.checked(written)
    }

    fn stop(mut self: Box<Self>, digest: Digest) {
        let result = self.complete(digest);
        self.mailbox.reply(self.id, result.map(|()| Reply::Done));
    }

    /// Its request is answered already, or the connection is gone: the staged bytes go with it.
    fn abort(self: Box<Self>, _: Option<RequestError>) {}
}
