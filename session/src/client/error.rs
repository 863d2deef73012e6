//! What a call can come to.

use std::io;
use std::path::PathBuf;

use blobferry_protocol::{RequestError, TxnId, UsageError};

use blobferry_cache::CacheError;
use blobferry_platform::blobdir::WriteError;

/// Why a call was not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server said no, and why.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// The connection ended before the answer came, and there was no other in time, or a transaction could not go on with
    /// it. Nothing was committed.
    #[error("the connection to the server was lost before it answered: {reason}")]
    Disconnected {
        /// Why it ended.
        reason: String,
    },
    /// The connection was lost during a commit, and the server says that nothing came of it, and never will.
    #[error("the connection to the server was lost, and transaction {txn} is not committed: do it again")]
    NotCommitted {
        /// The transaction.
        txn: TxnId,
    },
    /// The connection was lost during a commit, and nobody could be asked in time what became of it: all of the transaction
    /// is committed, or nothing. It can be asked for by its name.
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
    /// The cache could not do its part.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file that was to be stored can not be read.
    #[error("can not read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A stream that was to be stored failed.
    #[error("the stream to be stored failed: {0}")]
    Stream(io::Error),
    /// The call makes no sense now; nothing was sent.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// Nobody is left to answer. What became of the call is not known here; for a commit, ask for the transaction's outcome.
    #[error(
        "nobody is left to answer, and what became of the call is not known: ask for the outcome of a commit"
    )]
    Unanswered,
    /// The operating system has no random numbers to name a transaction with.
    #[error("no random numbers for a transaction's name: {0}")]
    NoName(String),
}

impl CallError {
    /// Whoever had to answer was dropped without a word, or can not come as long as somebody waits for it in a callback:
    /// told to who waits rather than left to hang.
    #[must_use]
    pub fn unanswered() -> CallError {
        CallError::Unanswered
    }
}

/// A stream is stored by writing it into the cache first.
impl From<WriteError> for CallError {
    fn from(error: WriteError) -> CallError {
        CallError::Stream(io::Error::other(error))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or the address is none.
    #[error("can not connect: {0}")]
    Connect(#[from] io::Error),
    /// Somebody listens, but no conversation came about.
    #[error("no conversation came about: {0}")]
    Handshake(CallError),
}

impl ConnectError {
    /// No address was given.
    #[must_use]
    pub fn no_address() -> ConnectError {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "no address of a server was given");
        ConnectError::Connect(error)
    }
}

/// Takes the one result of a call, on any thread; it must not block for long.
pub type Completion<T, E = CallError> = Box<dyn FnOnce(Result<T, E>) + Send>;
