//! The errors of a connection itself: those of the peer, and those of the caller.

use core::time::Duration;

use crate::ids::{RequestId, TransferId, TxnId};
use crate::limits::Limits;
use crate::message::{Phase, Refusal};
use crate::wire::DecodeError;

/// The peer has broken a rule of the protocol, or is gone. The connection is dead: close the
/// socket.
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
    /// The server has refused the connection.
    #[error("the server refused the connection: {0}")]
    Refused(Refusal),
    /// The server chose a version that was not offered.
    #[error("the server chose version {0}, which was not offered")]
    BadVersion(u16),
    /// A frame is not a message.
    #[error("the peer sent what is not a message: {0}")]
    Malformed(DecodeError),
    /// A frame is longer than its kind may be.
    #[error("the peer sent a frame of {len} bytes where at most {max} are allowed")]
    FrameTooLong {
        /// The length in bytes.
        len: u32,
        /// The limit.
        max: u32,
    },
    /// The peer has announced limits below [`Limits::MIN`].
    #[error("the peer announced limits too small to work with: {0:?}")]
    BadLimits(Limits),
    /// The peer has sent a message that its side may not send, or not at this point.
    #[error("the peer sent {message} when that was not allowed")]
    Unexpected {
        /// The kind of the message.
        message: &'static str,
    },
    /// A request id is not greater than the one before.
    #[error("the peer numbered a request {id:?} after {last:?}")]
    RequestOrder {
        /// The request.
        id: RequestId,
        /// The last one before it.
        last: RequestId,
    },
    /// The peer has more requests without an answer than [`Limits::requests`] allows.
    #[error("the peer has more than {limit} requests in flight")]
    TooManyRequests {
        /// The limit.
        limit: u32,
    },
    /// The peer has more transfers than [`Limits::transfers`] allows.
    #[error("the peer has more than {limit} transfers in flight")]
    TooManyTransfers {
        /// The limit.
        limit: u32,
    },
    /// The peer has answered a request that is not in flight, or with a reply of another kind.
    #[error("the peer answered request {id:?} wrongly: {what}")]
    WrongReply {
        /// The request.
        id: RequestId,
        /// What is wrong.
        what: &'static str,
    },
    /// A message of a transfer does not fit the transfer, or the transfer is not under way.
    #[error("the peer broke transfer {transfer:?}: {what}")]
    BadTransfer {
        /// The transfer.
        transfer: TransferId,
        /// What is wrong.
        what: &'static str,
    },
    /// The peer has sent payload beyond the credit of the transfer or of the connection.
    #[error("the peer sent more of transfer {transfer:?} than the credit it had")]
    CreditExceeded {
        /// The transfer.
        transfer: TransferId,
    },
    /// The peer has lowered a credit.
    #[error("the peer gave credit that makes no sense: {upto} after {before}")]
    BadCredit {
        /// The new credit.
        upto: u64,
        /// The credit before.
        before: u64,
    },
    /// The peer has sent more pings than this side answers between two writes.
    #[error("the peer floods the connection with {message}")]
    Flood {
        /// The kind of the message.
        message: &'static str,
    },
    /// The peer does not read: more bytes than [`Limits::control_queue`] wait for it.
    #[error("the peer does not read: {waiting} bytes wait for it")]
    NotReading {
        /// The number of control bytes that wait.
        waiting: u64,
    },
    /// The handshake has taken longer than
    /// [`Config::handshake_timeout`](crate::Config::handshake_timeout).
    #[error("the peer did not finish the handshake in time: it has {after:?}")]
    HandshakeTimeout {
        /// The limit.
        after: Duration,
    },
    /// The client has continued its transactions on another connection.
    #[error("the client has gone on to another connection")]
    Replaced,
    /// No bytes have arrived for [`Config::silence_limit`](crate::Config::silence_limit), not even
    /// the answer to a ping.
    #[error("the peer has gone silent: nothing was heard of it for {after:?}")]
    Silent {
        /// The limit.
        after: Duration,
    },
}

impl From<DecodeError> for PeerError {
    fn from(error: DecodeError) -> PeerError {
        PeerError::Malformed(error)
    }
}

impl PeerError {
    /// Returns true if the peer has broken a rule. Otherwise it is gone, busy or full, and a later
    /// attempt may succeed.
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

/// A call is not possible now. The connection is unchanged.
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
    /// A side has said goodbye, so nothing new begins.
    #[error("the connection is closing: nothing new begins on it")]
    Closing,
    /// The call would pass a limit of the peer or of this side. Wait for an answer first. If the
    /// limit is about bytes that wait to be sent, send those.
    #[error("{what}: {limit} at once are allowed on this connection")]
    Limit {
        /// What the limit is for.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The message is longer than the peer's [`Limits::frame`], or than half of this side's
    /// [`Limits::control_queue`].
    #[error("a message of {len} bytes: at most {max} can be sent on this connection")]
    TooLong {
        /// The length in bytes.
        len: u64,
        /// The limit.
        max: u32,
    },
    /// The request does not wait for an answer.
    #[error("request {0:?} does not wait for an answer")]
    NoSuchRequest(RequestId),
    /// The answer does not fit the request.
    #[error("that is no answer to request {0:?}")]
    WrongReply(RequestId),
    /// The transfer is not under way in this direction.
    #[error("transfer {0:?} is not under way")]
    NoSuchTransfer(TransferId),
    /// The offset or the length is not in the transfer.
    #[error("that is no place in transfer {0:?}")]
    BadRange(TransferId),
    /// More payload was reported as moved than is expected.
    #[error("{moved} bytes of payload moved, where {expected} were expected")]
    NotExpected {
        /// The reported number of bytes.
        moved: u64,
        /// The expected number of bytes.
        expected: u64,
    },
    /// The transaction is not open on this connection.
    #[error("transaction {0} is not open")]
    NoSuchTransaction(TxnId),
    /// The transaction is open already.
    #[error("transaction {0} is open already")]
    TransactionExists(TxnId),
    /// The transaction is in another phase.
    #[error("transaction {txn} is {phase}: that cannot be done now")]
    WrongPhase {
        /// The transaction.
        txn: TxnId,
        /// The phase that it is in.
        phase: Phase,
    },
    /// [`Request::StoreBlob`](crate::Request::StoreBlob) is sent with
    /// [`upload`](crate::client::Connection::upload), which also begins its transfer.
    #[error("a blob is stored with `upload`")]
    UseUpload,
}
