//! What both sides keep of a request in flight: its transaction, and which answer fits.

use crate::ids::TxnId;
use crate::message::{Reply, Request};

/// The kind of a request in flight, with what its answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A request that puts something into a transaction: `Begin`, `Store`, `StoreBlob`,
    /// `StoreShared`, `Delete`.
    Put(TxnId),
    Vote(TxnId),
    Finish(TxnId),
    Commit(TxnId),
    Abort(TxnId),
    Attach(TxnId),
    Outcome,
    Load,
    LoadBefore,
    History,
    NewOids,
    /// The range asked for.
    SendBlob {
        from: u64,
        upto: u64,
    },
    Status,
    Pack,
}

/// A request without an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) call: Call,
    /// The caller does not wait for the answer any more.
    pub(crate) cancelled: bool,
    /// Its upload was aborted, so the request cannot succeed any more.
    pub(crate) aborted: bool,
    /// The caller has had its event already: the peer's answer makes no second one.
    pub(crate) reported: bool,
}

impl From<Call> for Pending {
    fn from(call: Call) -> Pending {
        Pending { call, cancelled: false, aborted: false, reported: false }
    }
}

impl Call {
    pub(crate) fn of(request: &Request) -> Call {
        match *request {
            Request::Begin { txn, .. }
            | Request::Store { txn, .. }
            | Request::StoreBlob { txn, .. }
            | Request::StoreShared { txn, .. }
            | Request::Delete { txn, .. } => Call::Put(txn),
            Request::Vote { txn } => Call::Vote(txn),
            Request::Finish { txn } => Call::Finish(txn),
            Request::Commit { txn } => Call::Commit(txn),
            Request::Abort { txn } => Call::Abort(txn),
            Request::Attach { txn } => Call::Attach(txn),
            Request::Outcome { .. } => Call::Outcome,
            Request::Load { .. } | Request::LoadSerial { .. } => Call::Load,
            Request::LoadBefore { .. } => Call::LoadBefore,
            Request::History { .. } => Call::History,
            Request::NewOids { .. } => Call::NewOids,
            Request::SendBlob { from, upto, .. } => Call::SendBlob { from, upto },
            Request::Status => Call::Status,
            Request::Pack { .. } => Call::Pack,
        }
    }

    /// Returns true if this reply answers the request. An error always does.
    pub(crate) fn fits(self, reply: &Reply) -> bool {
        match self {
            Call::Put(_) | Call::Abort(_) => matches!(reply, Reply::Done),
            Call::Vote(_) => matches!(reply, Reply::Voted | Reply::Conflicts(_)),
            Call::Finish(_) => matches!(reply, Reply::Finished { .. }),
            Call::Commit(_) => matches!(reply, Reply::Finished { .. } | Reply::Conflicts(_)),
            Call::Attach(_) => matches!(reply, Reply::Attached { .. }),
            Call::Outcome => matches!(reply, Reply::Outcome(_)),
            Call::Load => matches!(reply, Reply::Revision(_)),
            Call::LoadBefore => matches!(reply, Reply::RevisionBefore(_)),
            Call::History => matches!(reply, Reply::History(_)),
            Call::NewOids => matches!(reply, Reply::Oids { .. }),
            Call::SendBlob { .. } => false,
            Call::Status => matches!(reply, Reply::Status(_)),
            Call::Pack => matches!(reply, Reply::Packed(_)),
        }
    }
}
