//! The rules of transactions: what may be asked of one in which phase. Everything that is not allowed is refused.
//!
//! A transaction is entered by `Begin`, or by `Attach` when its connection was lost.
//!
//! | phase | stores, deletes | vote, commit | finish | abort |
//! |---|---|---|---|---|
//! | open | yes | yes: held until every store is answered | no | yes |
//! | doomed (open, but a store failed) | no | yes: ends it with an error | no | yes |
//! | voting | no | no | no | yes |
//! | voted | no | no | yes | yes |
//! | finishing | no | no | no | no |
//!
//! A vote brings back to open where it finds conflicts. Any error that answers a vote, a finish or a commit which was
//! allowed ends the transaction.

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
    /// Its `Begin` or `Attach`: answers to requests before that belong to another transaction of the same name.
    begun: RequestId,
    phase: Phase,
    /// Something that belongs to it was not stored.
    doomed: bool,
    /// Requests that put something into it and are not answered.
    pending: u32,
    /// The vote or commit that waits for those.
    held: Option<(RequestId, Request)>,
}

/// What to do with a request that is allowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admit {
    /// It is for the caller.
    Pass,
    /// A vote or a commit: it waits in its transaction.
    Hold,
    /// A vote or a commit that comes too late for anything but an error. The transaction is over.
    Doomed(TxnId),
    /// It ends its transaction, and the vote that was held there.
    Abort { txn: TxnId, held: Option<RequestId> },
}

/// What the last answer to a store lets go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The vote or commit, for the caller.
    Ask(RequestId, Request),
    /// It is refused, and the transaction is over.
    Doomed(RequestId),
}

impl Transactions {
    /// May this be asked now? Changes the phase where that needs no answer first.
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
            // What is not open here can be given up all the same.
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

    /// A transaction is open from here on: it has begun, or goes on. What follows waits for the answer to that.
    fn enter(&mut self, txn: TxnId, id: RequestId, max_open: u32) -> Result<(), RequestError> {
        if self.open.contains_key(&txn) {
            return Err(RequestError::TransactionExists { txn });
        }
        limit("open transactions", u64::from(max_open), self.open.len() as u64 + 1)?;
        self.open.insert(txn, Txn { begun: id, phase: Phase::Open, doomed: false, pending: 1, held: None });
        Ok(())
    }

    /// Whether a transaction goes on was answered. One that does not is not open, and a vote for it is in vain.
    pub(super) fn attached(&mut self, txn: TxnId, id: RequestId, ok: bool) -> Option<Decision> {
        if ok {
            return self.put_answered(txn, id, ok);
        }
        let held = self.open.remove(&txn)?.held;
        held.map(|(vote, _)| Decision::Doomed(vote))
    }

    /// Something was refused: where it should have been stored, its transaction must not be committed without it.
    pub(super) fn refused(&mut self, request: &Request) {
        let store = matches!(Call::of(request), Call::Put(_)) && !matches!(request, Request::Begin { .. });
        if let Some(state) = request.txn().filter(|_| store).and_then(|txn| self.open.get_mut(&txn)) {
            state.doomed |= state.phase == Phase::Open || state.held.is_some();
        }
    }

    /// Something put into a transaction was answered: a failure dooms it, the last answer lets a held vote go.
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
        Some(Decision::Ask(vote, request))
    }

    /// A vote, finish or commit was answered, which leaves its transaction in a phase or ends it.
    pub(super) fn decided(&mut self, txn: TxnId, id: RequestId, phase: Option<Phase>) {
        let Some(state) = self.open.get_mut(&txn).filter(|state| state.begun <= id) else { return };
        match phase {
            Some(phase) => state.phase = phase,
            None => drop(self.open.remove(&txn)),
        }
    }

    /// Is this a vote that waits in its transaction?
    pub(super) fn holds(&self, id: RequestId) -> bool {
        self.open.values().any(|txn| matches!(txn.held, Some((vote, _)) if vote == id))
    }

    /// All that are open, with their phases as the caller knows them: it has not heard of a vote that is held.
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
