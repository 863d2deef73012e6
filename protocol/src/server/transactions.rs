//! The rules of transactions: which request is allowed in which phase. Every other request is
//! refused.
//!
//! A transaction is opened by `Begin`, or by `Attach` after its connection was lost.
//!
//! | phase | stores, deletes | vote, commit | finish | abort |
//! |---|---|---|---|---|
//! | open | yes | yes: held until every store is answered | no | yes |
//! | doomed (open, but a store failed) | no | yes: ends it with an error | no | yes |
//! | voting | no | no | no | yes |
//! | voted | no | no | yes | yes |
//! | finishing | no | no | no | no |
//!
//! A vote that finds conflicts leads back to open. Any error in answer to an allowed vote, finish
//! or commit ends the transaction.

use alloc::collections::BTreeMap;

use crate::call::Call;
use crate::ids::{RequestId, TxnId};
use crate::message::{Phase, Request, RequestError};

/// The most bytes of a transaction's user and description together.
const MAX_META: u64 = 64 << 10;

/// The transactions that are open on a connection.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    open: BTreeMap<TxnId, Txn>,
}

#[derive(Debug)]
struct Txn {
    /// Its `Begin` or `Attach`: an answer to an earlier request belongs to another transaction of
    /// the same name.
    begun: RequestId,
    phase: Phase,
    /// A store of this transaction has failed.
    doomed: bool,
    /// The number of its stores without an answer.
    pending: u32,
    /// The vote or commit that waits for them.
    held: Option<(RequestId, Request)>,
}

/// What happens to a request that is allowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admit {
    /// The request is passed to the caller.
    Pass,
    /// The vote or commit waits in its transaction.
    Hold,
    /// The vote or commit of a doomed transaction, which is over now.
    Doomed(TxnId),
    /// The request ends its transaction, and the vote that is held there.
    Abort { txn: TxnId, held: Option<RequestId> },
}

/// What happens to a held vote after the last answer to a store.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The vote or commit is passed to the caller.
    Pass(RequestId, Request),
    /// The vote or commit is refused, and the transaction is over.
    Doomed(RequestId),
}

impl Transactions {
    /// Decides about a request, and changes the phase if that needs no answer first.
    pub(super) fn admit(
        &mut self,
        id: RequestId,
        request: &Request,
        max_open: u32,
    ) -> Result<Admit, RequestError> {
        let Some(txn) = request.txn() else { return Ok(Admit::Pass) };
        if let Request::Begin { meta, .. } = request {
            let size = meta.user.len() + meta.description.len();
            limit("the transaction's user and description", MAX_META, size as u64)?;
        }
        if let Request::Begin { .. } | Request::Attach { .. } = request {
            self.enter(txn, id, max_open)?;
            return Ok(Admit::Pass);
        }
        let Some(state) = self.open.get_mut(&txn) else {
            // A transaction that is not open on this connection can be aborted too.
            let abort = matches!(request, Request::Abort { .. });
            return if abort { Ok(Admit::Pass) } else { Err(RequestError::NoSuchTransaction { txn }) };
        };
        match (request, state.phase) {
            (Request::Vote { .. } | Request::Commit { .. }, Phase::Open) => {
                let commit = matches!(request, Request::Commit { .. });
                state.phase = if commit { Phase::Finishing } else { Phase::Voting };
                if state.pending > 0 {
                    state.held = Some((id, request.clone()));
                    Ok(Admit::Hold)
                } else if state.doomed {
                    self.open.remove(&txn);
                    Ok(Admit::Doomed(txn))
                } else {
                    Ok(Admit::Pass)
                }
            }
            (Request::Finish { .. }, Phase::Voted) => {
                state.phase = Phase::Finishing;
                Ok(Admit::Pass)
            }
            (Request::Abort { .. }, Phase::Open | Phase::Voting | Phase::Voted) => {
                let held = self.open.remove(&txn).and_then(|state| state.held).map(|(id, _)| id);
                Ok(Admit::Abort { txn, held })
            }
            (
                Request::Store { .. }
                | Request::StoreBlob { .. }
                | Request::StoreShared { .. }
                | Request::Delete { .. },
                Phase::Open,
            ) => {
                if state.doomed {
                    return Err(RequestError::Doomed { txn });
                }
                state.pending += 1;
                Ok(Admit::Pass)
            }
            (_, phase) => Err(RequestError::WrongPhase { txn, phase }),
        }
    }

    /// Opens a transaction that begins or goes on. A vote waits for the answer to that request.
    fn enter(&mut self, txn: TxnId, id: RequestId, max_open: u32) -> Result<(), RequestError> {
        if self.open.contains_key(&txn) {
            return Err(RequestError::TransactionExists { txn });
        }
        limit("open transactions", u64::from(max_open), self.open.len() as u64 + 1)?;
        self.open.insert(txn, Txn { begun: id, phase: Phase::Open, doomed: false, pending: 1, held: None });
        Ok(())
    }

    /// Handles the answer to an `Attach`. If it failed, the transaction is not open, and its vote
    /// is refused.
    pub(super) fn attached(&mut self, txn: TxnId, id: RequestId, ok: bool) -> Option<Decision> {
        if ok {
            return self.put_answered(txn, id, ok);
        }
        let held = self.open.remove(&txn)?.held;
        held.map(|(vote, _)| Decision::Doomed(vote))
    }

    /// Dooms the transaction of a refused store: it must not be committed without that store.
    pub(super) fn refused(&mut self, request: &Request) {
        let store = matches!(Call::of(request), Call::Put(_)) && !matches!(request, Request::Begin { .. });
        if let Some(state) = request.txn().filter(|_| store).and_then(|txn| self.open.get_mut(&txn)) {
            state.doomed |= state.phase == Phase::Open || state.held.is_some();
        }
    }

    /// Handles the answer to a store: a failure dooms the transaction, and the last answer releases
    /// a held vote.
    pub(super) fn put_answered(&mut self, txn: TxnId, id: RequestId, ok: bool) -> Option<Decision> {
        let state = self.open.get_mut(&txn).filter(|state| state.begun <= id)?;
        state.pending = state.pending.saturating_sub(1);
        state.doomed |= !ok;
        if state.pending > 0 {
            return None;
        }
        let (vote, request) = state.held.take()?;
        if state.doomed {
            self.open.remove(&txn);
            return Some(Decision::Doomed(vote));
        }
        Some(Decision::Pass(vote, request))
    }

    /// Handles the answer to a vote, finish or commit, which leads its transaction to a phase or
    /// ends it.
    pub(super) fn decided(&mut self, txn: TxnId, id: RequestId, phase: Option<Phase>) {
        let Some(state) = self.open.get_mut(&txn).filter(|state| state.begun <= id) else { return };
        match phase {
            Some(phase) => state.phase = phase,
            None => drop(self.open.remove(&txn)),
        }
    }

    /// Returns true if this is a vote that waits in its transaction.
    pub(super) fn holds(&self, id: RequestId) -> bool {
        self.open.values().any(|txn| matches!(txn.held, Some((vote, _)) if vote == id))
    }

    /// Returns the open transactions, with their phases as the caller knows them: it does not know
    /// a held vote.
    pub(super) fn phases(&self) -> impl Iterator<Item = (TxnId, Phase)> + '_ {
        self.open.iter().map(|(txn, state)| match state {
            Txn { doomed: true, .. } => (*txn, Phase::Doomed),
            Txn { held: Some(_), .. } => (*txn, Phase::Open),
            Txn { phase, .. } => (*txn, *phase),
        })
    }
}

fn limit(what: &str, limit: u64, actual: u64) -> Result<(), RequestError> {
    if actual > limit { Err(RequestError::Limit { what: what.into(), limit, actual }) } else { Ok(()) }
}
