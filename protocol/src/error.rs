//! What can go wrong at the machine itself: the peer breaks a rule, or the caller does.

use core::time::Duration;

use crate::ids::{RequestId, TransferId, TxnId};
use crate::limits::Limits;
use crate::message::{Phase, Refusal};
use crate::wire::DecodeError;

/// The peer broke a rule of the protocol, or is gone. The connection is dead: close the socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The first bytes of the peer are not the start of a message: another program listens there.
    #[error("the peer does not speak blobferry's protocol: its first bytes are \"{}\"", .said.escape_ascii())]
    NotBlobferry {
        /// The first four bytes that the peer sent.
        said: [u8; 4],
    },
    /// The first message was not a [`Hello`](crate::Hello) with [`MAGIC`](crate::MAGIC).
    #[error("the peer does not speak blobferry's protocol")]
    BadMagic,
    /// The server wants no conversation.
    #[error("the server refused the connection: {0}")]
    Refused(Refusal),
    /// The server chose a version that was not offered.
    #[error("the server chose version {0}, which was not offered")]
    BadVersion(u16),
    /// A frame is no message.
    #[error("the peer sent what is not a message: {0}")]
    Malformed(#[from] DecodeError),
    /// A frame is longer than its kind may be.
    #[error("the peer sent a frame of {len} bytes where at most {max} are allowed")]
    FrameTooLong {
        /// Its length.
        len: u32,
        /// The limit.
        max: u32,
    },
    /// A limit was announced with which no conversation is possible.
    #[error("the peer announced limits too small to work with: {0:?}")]
    BadLimits(Limits),
    /// A message that this side, or this moment, has no place for.
    #[error("the peer sent {message} when that was not allowed")]
    Unexpected {
        /// The kind of the message.
        message: &'static str,
    },
    /// A request id was not greater than the one before.
    #[error("the peer numbered a request {id:?} after {last:?}")]
    RequestOrder {
        /// The request.
        id: RequestId,
        /// The last one before it.
        last: RequestId,
    },
    /// More requests at once than were allowed.
    #[error("the peer has more than {limit} requests in flight")]
    TooManyRequests {
        /// The limit.
        limit: u32,
    },
    /// More transfers at once than were allowed.
    #[error("the peer has more than {limit} transfers in flight")]
    TooManyTransfers {
        /// The limit.
        limit: u32,
    },
    /// An answer to a request that is not in flight, or not of its kind.
    #[error("the peer answered request {id:?} wrongly: {what}")]
    WrongReply {
        /// The request.
        id: RequestId,
        /// What is wrong.
        what: &'static str,
    },
    /// A transfer message for a transfer that is not under way, or not as announced.
    #[error("the peer broke transfer {transfer:?}: {what}")]
    BadTransfer {
        /// The transfer.
        transfer: TransferId,
        /// What is wrong.
        what: &'static str,
    },
    /// Payload beyond the credit of the transfer or of the connection.
    #[error("the peer sent more of transfer {transfer:?} than the credit it had")]
    CreditExceeded {
        /// The transfer.
        transfer: TransferId,
    },
    /// Credit was lowered, or given beyond all reason.
    #[error("the peer gave credit that makes no sense: {upto} after {before}")]
    BadCredit {
        /// The credit given.
        upto: u64,
        /// The credit before.
        before: u64,
    },
    /// More small messages than are answered between two writes.
    #[error("the peer floods the connection with {message}")]
    Flood {
        /// The kind of the message.
        message: &'static str,
    },
    /// The peer does not read what it asked for.
    #[error("the peer does not read: {waiting} bytes wait for it")]
    NotReading {
        /// Control bytes that wait.
        waiting: u64,
    },
    /// The handshake was not done in time.
    #[error("the peer did not finish the handshake in time: it has {after:?}")]
    HandshakeTimeout {
        /// How long it may take.
        after: Duration,
    },
    /// The client goes on with its transactions on another connection.
    #[error("the client has gone on to another connection")]
    Replaced,
    /// Nothing was heard for too long, not even the answer to a ping.
    #[error("the peer has gone silent: nothing was heard of it for {after:?}")]
    Silent {
        /// The limit.
        after: Duration,
    },
}

impl PeerError {
    /// Has the peer broken a rule? If not it is gone, or busy, or full, and may be another time.
    #[must_use]
    pub fn is_protocol_violation(&self) -> bool {
        !matches!(
            self,
            PeerError::Refused(_)
                | PeerError::NotReading { .. }
                | PeerError::HandshakeTimeout { .. }
                | PeerError::Replaced
                | PeerError::Silent { .. }
        )
    }
}

/// A call that makes no sense now. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// The connection is dead.
    #[error("the connection is dead: {0}")]
    Dead(PeerError),
    /// The handshake is not done.
    #[error("the handshake is not done")]
    NotConnected,
    /// The handshake is done already.
    #[error("the handshake is done already")]
    Connected,
    /// One of the sides has said goodbye: nothing new begins.
    #[error("the connection is closing: nothing new begins on it")]
    Closing,
    /// A limit of the peer's, or of this side's own, would be passed. Wait for an answer first; where it is about
    /// bytes that wait to be sent, send those.
    #[error("{what}: {limit} at once are allowed on this connection")]
    Limit {
        /// What the limit is for.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A message longer than the peer takes, or than half of this side's own
    /// [`control_queue`](crate::Limits::control_queue).
    #[error("a message of {len} bytes: at most {max} can be sent on this connection")]
    TooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u32,
    },
    /// No such request is waiting for an answer.
    #[error("request {0:?} does not wait for an answer")]
    NoSuchRequest(RequestId),
    /// The answer does not fit the request.
    #[error("that is no answer to request {0:?}")]
    WrongReply(RequestId),
    /// No such transfer is under way in this direction.
    #[error("transfer {0:?} is not under way")]
    NoSuchTransfer(TransferId),
    /// An offset or a length that the transfer does not have.
    #[error("that is no place in transfer {0:?}")]
    BadRange(TransferId),
    /// More payload was moved than is expected, or some while none is.
    #[error("{moved} bytes of payload moved, where {expected} were expected")]
    NotExpected {
        /// What was said to be moved.
        moved: u64,
        /// What is expected.
        expected: u64,
    },
    /// No such transaction is open here.
    #[error("transaction {0} is not open")]
    NoSuchTransaction(TxnId),
    /// The transaction is open already.
    #[error("transaction {0} is open already")]
    TransactionExists(TxnId),
    /// The transaction is in another phase.
    #[error("transaction {txn} is {phase}: that can not be done now")]
    WrongPhase {
        /// The transaction.
        txn: TxnId,
        /// The phase that it is in.
        phase: Phase,
    },
    /// A blob is stored with `upload`, which begins its transfer, too.
    #[error("a blob is stored with `upload`")]
    UseUpload,
}
