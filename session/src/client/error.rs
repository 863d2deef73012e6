//! Errors of a client's calls, and the completion that receives the result of one.

use std::io;
use std::path::PathBuf;

use blobferry_cache::CacheError;
use blobferry_platform::blobdir::WriteError;
use blobferry_protocol::{RequestError, TxnId, UsageError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server refused the request.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// The connection ended before the answer came, and there was no other in time, or a transaction could not go on with
    /// it. Nothing was committed.
    #[error("the connection to the server was lost before it answered: {reason}")]
    Disconnected {
        /// Why the connection ended.
        reason: String,
    },
    /// The connection was lost during a commit. The server says that the transaction is not committed, and never will
    /// be.
    #[error("the connection to the server was lost, and transaction {txn} is not committed: do it again")]
    NotCommitted {
        /// The transaction.
        txn: TxnId,
    },
    /// The connection was lost during a commit, and the server could not be asked for the outcome in time. All of the
    /// transaction is committed, or nothing. Ask for its [outcome](super::Session::outcome) later.
    #[error(
        "the connection to the server was lost during a commit ({reason}), and did not come back: all of transaction \
         {txn} is committed, or nothing; ask for its outcome"
    )]
    OutcomeUnknown {
        /// The transaction.
        txn: TxnId,
        /// Why the server could not be asked.
        reason: String,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file that was to be stored cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// A stream that was to be stored failed.
    #[error("the stream to be stored failed: {0}")]
    Stream(io::Error),
    /// The call is not possible in this state; nothing was sent.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The completion was dropped without being called, or the caller is blocking in a callback that must return first.
    /// The call fails instead of hanging, and its outcome is unknown. For a commit, ask for the
    /// [outcome](super::Session::outcome).
    #[error(
        "the call was dropped without an answer, and its outcome is unknown: ask for the outcome of a commit"
    )]
    Unanswered,
    /// The operating system has no random numbers to name a transaction with.
    #[error("no random numbers for a transaction's name: {0}")]
    NoName(String),
}

impl From<CallError> for io::Error {
    /// Keeps an error of the file system or of a stream as it is, and wraps all others.
    fn from(error: CallError) -> io::Error {
        match error {
            CallError::Stream(error) => error,
            CallError::File { ref source, .. } => io::Error::new(source.kind(), error),
            CallError::Disconnected { .. }
            | CallError::NotCommitted { .. }
            | CallError::OutcomeUnknown { .. } => io::Error::new(io::ErrorKind::ConnectionAborted, error),
            error => io::Error::other(error),
        }
    }
}

/// Converts an error in writing a stream, which is stored by writing it into the cache first.
impl From<WriteError> for CallError {
    fn from(error: WriteError) -> CallError {
        CallError::Stream(io::Error::other(error))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No stream to the address can be opened.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address, as it was given.
        address: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The address can be connected to, but the handshake failed.
    #[error("no handshake with {address}")]
    Handshake {
        /// The address, as it was given.
        address: String,
        /// What went wrong.
        source: CallError,
    },
}

impl ConnectError {
    /// Returns the error for an empty list of addresses.
    #[must_use]
    pub fn no_address() -> ConnectError {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "no address of a server was given");
        ConnectError::Connect { address: String::new(), source }
    }
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> io::Error {
        match error {
            ConnectError::Connect { ref source, .. } => io::Error::new(source.kind(), error),
            error @ ConnectError::Handshake { .. } => io::Error::new(io::ErrorKind::ConnectionAborted, error),
        }
    }
}

/// Receives the one result of a call, on any thread. It must not block for long.
pub type Completion<T, E = CallError> = Box<dyn FnOnce(Result<T, E>) + Send>;
