//! The messages that other threads post to a handler.

use blobferry_platform::sync::Arc;
use blobferry_protocol::{BlobInfo, Oid, Reply, RequestError, RequestId, Tid};

use crate::io::{SinkEvent, Source};
use crate::server::detached::{Attachable, TransactionLease};
use crate::server::mailbox::Mailbox;
use crate::server::verified::VerifiedFile;

/// A message to the handler of one connection.
pub(super) enum Message {
    /// A request was answered.
    Reply { id: RequestId, result: Result<Reply, RequestError> },
    /// A blob to send was opened.
    Opened { id: RequestId, opened: Result<Opened, RequestError> },
    /// A transaction was attached to the connection, or could not be.
    Attached { id: RequestId, attached: Result<Arc<TransactionLease>, RequestError> },
    /// The client goes on with a transaction on another connection.
    Replaced,
    /// A sink has made progress.
    Sink(SinkEvent),
    /// A transaction was committed.
    Committed { tid: Tid, oids: Arc<[Oid]> },
}

/// A blob that is ready to be sent.
pub(super) struct Opened {
    pub(super) info: BlobInfo,
    /// The bytes to send; `None` if there are none.
    pub(super) source: Option<Source>,
    /// Whether the whole blob is sent, not a part.
    pub(super) is_whole: bool,
    /// What is verified once the whole blob was sent.
    pub(super) verifies: Option<VerifiedFile>,
}

impl Mailbox<Message> {
    /// Posts the answer to a request.
    pub(super) fn reply(&self, id: RequestId, result: Result<Reply, RequestError>) {
        self.post(Message::Reply { id, result });
    }
}

impl Attachable for Mailbox<Message> {
    fn attached(&self, id: RequestId, attached: Result<Arc<TransactionLease>, RequestError>) {
        self.post(Message::Attached { id, attached });
    }

    fn replaced(&self) {
        self.post(Message::Replaced);
    }
}
