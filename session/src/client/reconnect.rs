//! What a session does when its connection is lost, and when there is another one. Every pending call gets its answer,
//! and no commit is made twice.
//!
//! Reads are sent again. An open transaction is first attached to the new connection; its requests wait until then. The
//! server answers with what has arrived, so only the rest is sent again, and blobs go on at the byte that the server
//! names. A commit that was sent is repeated only if the server does not know of it. If the transaction cannot be
//! attached, the session asks the server for its outcome.

use blobferry_platform::os;
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{
    Outcome, PeerError, Refusal, Reply, Request, RequestError, RequestId, TxnId, Unfinished,
};

use crate::client::dial::Dial;
use crate::client::error::{CallError, Completion};
use crate::client::events::ConnectionEvent;
use crate::client::queue::{Queued, Sent};
use crate::client::state::{Link, SessionState, Txn};
use crate::io::{CloseReason, OutgoingTransfers};

impl SessionState {
    /// See [`Session::next_dial`](super::Session::next_dial).
    pub(super) fn next_dial(&self) -> Option<Dial> {
        let mut chance = [0; 4];
        // Without random bytes the pause has its shortest length, which does no harm.
        let _ = os::random(&mut chance);
        self.goes_on().then(|| self.dialer.next(u32::from_le_bytes(chance)))
    }

    /// Handles the loss of a connection, or an attempt that failed. `connected` says whether the handshake was done.
    pub(super) fn lost(&mut self, ended: &CloseReason, connected: bool) {
        let reason = ended.to_string();
        if self.closed().is_some() {
            return;
        }
        if !self.was_connected || !self.goes_on() || is_final(ended) {
            return self.close(&reason);
        }
        self.link = Link::Down;
        self.wake = None;
        let address = self.dialer.address();
        let event = match connected {
            true => ConnectionEvent::Lost { address, reason: reason.clone() },
            false => ConnectionEvent::Failed { address, reason: reason.clone() },
        };
        self.publish(&event);
        let is_unreachable = self.dialer.lost(os::now(), connected);
        self.requeue_unanswered();
        // A server that has violated the protocol would most likely answer the same requests in the same way.
        let violated = matches!(ended, CloseReason::Peer(error) if error.is_protocol_violation());
        if is_unreachable || violated {
            self.mark_unreachable(reason);
        }
    }

    /// Queues everything that was sent and not answered again, in order; open transactions with their requests.
    fn requeue_unanswered(&mut self) {
        let mut attach = Vec::new();
        for (txn, state) in &mut self.transactions {
            if let Txn::Attached = state {
                *state = Txn::Attaching(Vec::new());
            }
            if let Txn::Attaching(_) = state {
                attach.push(Queued::Attach(*txn));
            }
        }
        let (sent, queued) = (std::mem::take(&mut self.sent), std::mem::take(&mut self.queued));
        self.queued.extend(attach);
        for (id, request) in sent {
            let request = match request {
                Sent::Attach(_) => continue,
                Sent::Call { request, done } => Queued::Call { request, done },
                Sent::Upload(upload) => {
                    Queued::Upload { upload, from: 0, source: self.outgoing.take(id.into()) }
                }
            };
            self.requeue(Some(id), request);
        }
        for request in queued {
            if !matches!(request, Queued::Attach(_)) {
                self.requeue(None, request);
            }
        }
        self.outgoing = OutgoingTransfers::default();
        // The sinks queue requests for the rest of their blobs.
        self.incoming.abort_all();
        for to in self.memory.take_all() {
            self.defer(move || to.enqueue());
        }
    }

    fn requeue(&mut self, sent: Option<RequestId>, request: Queued) {
        let txn = request.txn();
        match (txn.and_then(|txn| self.transactions.get_mut(&txn)), request) {
            // The transaction was voted for: the server has committed it, or aborted it.
            (Some(_), Queued::Call { request: Request::Finish { txn }, done }) if sent.is_some() => {
                self.transactions.remove(&txn);
                self.queued.push_back(outcome(txn, Vec::new(), done));
            }
            (Some(Txn::Attaching(requests)), request) => requests.push((sent, request)),
            (_, request) => self.queued.push_back(request),
        }
    }

    /// Goes on with a transaction that the server has attached. What the server has not done is sent again, blobs from
    /// the byte that the server has reached.
    pub(super) fn attached(&mut self, txn: TxnId, last: RequestId, unfinished: &[Unfinished]) {
        let Some(state) = self.transactions.get_mut(&txn) else { return };
        let Txn::Attaching(requests) = std::mem::replace(state, Txn::Attached) else { return };
        for (sent, request) in requests.into_iter().rev() {
            let known = sent.filter(|id| *id <= last);
            let rest = known.and_then(|id| unfinished.iter().find(|rest| rest.request == id));
            match (request, rest) {
                // A vote that the server has made holds locks, and then it would not have attached the transaction.
                (request, None) if known.is_some() && !request.ends() => self.defer(|| was_done(request)),
                (Queued::Upload { upload, source, .. }, Some(rest)) => {
                    let off = u64::from(planted(Bug::ResumeOneByteOff) && rest.upto > 0);
                    let from = (rest.upto + off).min(upload.size);
                    self.queued.push_front(Queued::Upload { upload, from, source });
                }
                (request, _) => self.queued.push_front(request),
            }
        }
    }

    /// Handles the server's refusal to go on with a transaction.
    pub(super) fn not_attached(&mut self, txn: TxnId, error: &RequestError) {
        let Some(state) = self.transactions.get_mut(&txn) else { return };
        let begins = |queued: &Queued| matches!(queued, Queued::Call { request: Request::Begin { .. }, .. });
        let commits =
            |queued: &Queued| matches!(queued, Queued::Call { request: Request::Commit { .. }, .. });
        match state {
            // The server does not know the transaction, because its first request never arrived. If a commit was sent
            // right behind, the server may have made it instead.
            Txn::Attaching(requests)
                if matches!(error, RequestError::NoSuchTransaction { .. })
                    && requests.first().is_some_and(|(_, request)| begins(request))
                    && !requests.iter().any(|(sent, request)| sent.is_some() && commits(request)) =>
            {
                let requests = std::mem::take(requests);
                *state = Txn::Attached;
                requests.into_iter().rev().for_each(|(_, request)| self.queued.push_front(request));
            }
            Txn::Attaching(_) => {
                self.give_up(
                    txn,
                    &format!("the connection was lost, and the server does not go on: {error}"),
                );
            }
            Txn::Attached | Txn::Lost(_) => {}
        }
    }

    /// Gives a transaction up. If its commit was sent, the server is asked for the outcome.
    fn give_up(&mut self, txn: TxnId, reason: &str) {
        let lost = self.transactions.insert(txn, Txn::Lost(reason.to_owned()));
        let Some(Txn::Attaching(requests)) = lost else { return };
        let mut before = Vec::new();
        for (sent, request) in requests {
            match request {
                request if sent.is_some() && planted(Bug::RepeatCommit) => self.queued.push_back(request),
                Queued::Call { request: Request::Commit { txn }, done } if sent.is_some() => {
                    self.queued.push_back(outcome(txn, std::mem::take(&mut before), done));
                }
                request if sent.is_some() => before.push(request),
                request => self.enqueue_in(txn, request),
            }
        }
        before.into_iter().for_each(|request| self.enqueue_in(txn, request));
    }

    /// Fails all pending calls, and all further ones until the next handshake.
    fn mark_unreachable(&mut self, reason: String) {
        if self.unreachable.is_none() {
            self.publish(&ConnectionEvent::Unreachable { reason: reason.clone() });
        }
        self.fail_all(&reason);
        self.unreachable = Some(reason);
    }

    fn fail_all(&mut self, reason: &str) {
        let open: Vec<TxnId> = self.transactions.keys().copied().collect();
        open.into_iter().for_each(|txn| self.give_up(txn, reason));
        for request in std::mem::take(&mut self.queued) {
            let reason = reason.to_owned();
            self.defer(move || request.fail(CallError::Disconnected { reason }));
        }
    }

    /// See [`Session::close`](super::Session::close).
    pub(super) fn close(&mut self, reason: &str) {
        if self.closed().is_some() {
            return;
        }
        self.link = Link::Closed { reason: reason.to_owned() };
        self.listeners.clear();
        self.watchers.clear();
        for done in std::mem::take(&mut self.handshake_waiters) {
            let reason = reason.to_owned();
            self.defer(move || done(Err(CallError::Disconnected { reason })));
        }
        self.requeue_unanswered();
        self.fail_all(reason);
        self.transactions.clear();
    }
}

/// Returns a request for the outcome of a commit. The server has committed only if it had done what was sent `before`,
/// so the answer completes those requests, too.
fn outcome(txn: TxnId, before: Vec<Queued>, done: Completion<Reply>) -> Queued {
    let done: Completion<Reply> = Box::new(move |result| {
        if let Ok(Reply::Outcome(Outcome::Committed { tid })) = result {
            before.into_iter().for_each(was_done);
            return done(Ok(Reply::Finished { tid }));
        }
        let unknown = result.err().map(|error| error.to_string());
        let error = || match &unknown {
            None => CallError::NotCommitted { txn },
            Some(reason) => CallError::OutcomeUnknown { txn, reason: reason.clone() },
        };
        before.into_iter().for_each(|request| request.fail(error()));
        done(Err(error()));
    });
    Queued::Call { request: Request::Outcome { txn }, done }
}

/// Completes a request that the server has done. Only its answer was lost.
fn was_done(request: Queued) {
    match request {
        Queued::Call { done, .. } => done(Ok(Reply::Done)),
        Queued::Upload { upload, .. } => match upload.digest {
            Some(digest) => (upload.done)(Ok(digest)),
            // The end of this blob was never sent, so the server cannot have done it.
            None => (upload.done)(Err(CallError::Unanswered)),
        },
        request => request.fail(CallError::Unanswered),
    }
}

/// Returns whether another connection would end in the same way.
fn is_final(ended: &CloseReason) -> bool {
    let CloseReason::Peer(error) = ended else { return false };
    match error {
        PeerError::Refused(refusal) => matches!(refusal, Refusal::Version { .. } | Refusal::Credentials),
        PeerError::BadMagic | PeerError::BadVersion(_) | PeerError::BadLimits(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use blobferry_platform::pool::BlockingPool;
    use blobferry_protocol::{Oid, Tid};

    use super::*;
    use crate::client::dial::{Addresses, Dialer, Reconnect};

    const TXN: TxnId = TxnId([7; 16]);

    type Answers = Receiver<Result<Reply, CallError>>;

    /// Loses a connection on which a store and a commit were sent. The server does not attach the transaction, and answers
    /// `outcome`. Returns the results of both calls.
    fn lost_with_a_commit(outcome: Result<Outcome, CallError>) -> [Result<Reply, CallError>; 2] {
        let dialer = Dialer::new(Addresses::from("a:1"), Reconnect::default());
        let mut state = SessionState::new(dialer, 8, 0, &BlockingPool::new(1));
        state.begin_generation(std::sync::Arc::new(|| {}));
        state.was_connected = true;
        state.transactions.insert(TXN, Txn::Attached);
        let store = Request::Store { txn: TXN, oid: Oid(1), base: Tid::ZERO, data: Vec::new() };
        let mut sent = |id, request| -> Answers {
            let (answer, answers) = channel();
            let done: Completion<Reply> = Box::new(move |result| answer.send(result).unwrap());
            state.sent.insert(RequestId(id), Sent::Call { request, done });
            answers
        };
        let answers = [sent(1, store), sent(2, Request::Commit { txn: TXN })];
        state.lost(&CloseReason::Closed, true);
        state.not_attached(TXN, &RequestError::NoSuchTransaction { txn: TXN });
        state.take_deferred().into_iter().for_each(|act| act());
        let Some(Queued::Call { request: Request::Outcome { .. }, done }) = state.queued.pop_back() else {
            panic!("the outcome is not requested");
        };
        done(outcome.map(Reply::Outcome));
        answers.map(|answers| answers.recv().unwrap())
    }

    #[test]
    fn outcome_of_a_commit_completes_the_stores_before_it() {
        let [stored, committed] = lost_with_a_commit(Ok(Outcome::Committed { tid: Tid(5) }));
        assert_eq!(stored.unwrap(), Reply::Done);
        assert_eq!(committed.unwrap(), Reply::Finished { tid: Tid(5) });

        let [stored, committed] = lost_with_a_commit(Ok(Outcome::NotCommitted));
        assert!(matches!(stored, Err(CallError::NotCommitted { .. })));
        assert!(matches!(committed, Err(CallError::NotCommitted { .. })));

        let [stored, committed] = lost_with_a_commit(Err(CallError::Unanswered));
        assert!(matches!(stored, Err(CallError::OutcomeUnknown { .. })));
        assert!(matches!(committed, Err(CallError::OutcomeUnknown { .. })));
    }
}
