//! What happens when the connection is lost, and when there is another: nothing that anybody waits for is forgotten, and
//! nothing is done twice.
//!
//! Calls that read are just asked again. An open transaction is attached to the new connection first; meanwhile its calls
//! wait with it. The server then says what has arrived, so that only the rest is asked again, and blobs go on at the byte
//! that the server names. A commit that was sent is never sent again before the server has said that it does not know of
//! it; where the transaction can not be attached, it is asked what became of it.

use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{
    Outcome, PeerError, Refusal, Reply, Request, RequestError, RequestId, TxnId, Unfinished,
};

use crate::client::dial::{ConnectionEvent, Dial};
use crate::client::error::{CallError, Completion};
use crate::client::session::Wake;
use crate::client::state::{Queued, Sent, SessionState};
use crate::io::{CloseReason, OutgoingTransfers};
use blobferry_platform::os;

/// An open transaction.
pub(super) enum Txn {
    /// It is on the connection.
    Here,
    /// Its connection was lost. What is asked of it waits; what was sent has the number that it had.
    Attaching(Vec<(Option<RequestId>, Queued)>),
    /// The server has given it up, for this reason.
    Lost(String),
}

impl SessionState {
    /// There is a connection.
    pub(super) fn begin_generation(&mut self, wake: Wake) -> u64 {
        self.generation += if self.is_alive() { 2 } else { 1 };
        (self.wake, self.server_leaves) = (Some(wake), false);
        self.generation
    }

    /// Is this the connection that there is?
    pub(super) fn is_generation(&self, generation: u64) -> bool {
        self.generation == generation
    }

    /// Is there a connection, as far as anybody knows?
    pub(super) fn is_alive(&self) -> bool {
        self.generation % 2 == 1
    }

    /// Does it have another connection after this one?
    pub(super) fn goes_on(&self) -> bool {
        self.closed.is_none() && !self.leaving && self.dialer.can_call()
    }

    /// See [`Session::next_dial`](super::Session::next_dial).
    pub(super) fn next_dial(&self) -> Option<Dial> {
        let mut chance = [0; 4];
        // Without chance there is no harm, either.
        let _ = os::random(&mut chance);
        self.goes_on().then(|| self.dialer.next(u32::from_le_bytes(chance)))
    }

    /// Takes a call in.
    pub(super) fn enqueue(&mut self, ask: Queued) {
        if let Some(reason) = self.closed.clone() {
            return self.after(move || ask.fail(CallError::Disconnected { reason }));
        }
        match (ask.txn(), &self.down) {
            (Some(txn), _) => self.ask_in(txn, ask),
            (None, Some(reason)) => {
                let reason = reason.clone();
                self.after(move || ask.fail(CallError::Disconnected { reason }));
            }
            (None, None) => self.waiting.push_back(ask),
        }
    }

    fn ask_in(&mut self, txn: TxnId, ask: Queued) {
        let (begins, aborts) = match &ask {
            Queued::Call { request, .. } => {
                (matches!(request, Request::Begin { .. }), matches!(request, Request::Abort { .. }))
            }
            _ => (false, false),
        };
        if begins {
            let state = self.down.clone().map_or(Txn::Here, Txn::Lost);
            self.transactions.entry(txn).or_insert(state);
        }
        if aborts {
            return self.abort(txn, ask);
        }
        match self.transactions.get_mut(&txn) {
            Some(Txn::Attaching(asks)) => asks.push((None, ask)),
            Some(Txn::Lost(reason)) => {
                let reason = reason.clone();
                // Who wants it finished asks for nothing more, not even to abort it.
                if let Queued::Call { request: Request::Finish { .. }, .. } = &ask {
                    self.transactions.remove(&txn);
                }
                self.after(move || ask.fail(CallError::Disconnected { reason }));
            }
            Some(Txn::Here) => self.waiting.push_back(ask),
            // The machine knows why not.
            None => self.waiting.push_back(ask),
        }
    }

    /// Gives a transaction up: where it is on no connection, the server is told all the same, as it keeps it.
    fn abort(&mut self, txn: TxnId, ask: Queued) {
        let done = match self.transactions.remove(&txn) {
            Some(Txn::Attaching(asks)) => {
                self.waiting.retain(|ask| !matches!(ask, Queued::Attach(attached) if *attached == txn));
                for (_, ask) in asks {
                    let reason = "the client gave it up".to_owned();
                    self.after(move || ask.fail(RequestError::Aborted { txn, reason }.into()));
                }
                self.down.is_some()
            }
            Some(Txn::Lost(_)) => true,
            Some(Txn::Here) | None => false,
        };
        match ask {
            Queued::Call { done: tell, .. } if done => self.after(move || tell(Ok(Reply::Done))),
            ask => self.waiting.push_back(ask),
        }
    }

    /// The connection was lost, or has not come about.
    pub(super) fn lost(&mut self, ended: &CloseReason, connected: bool) {
        let reason = ended.to_string();
        if self.closed.is_some() {
            return;
        }
        if !self.greeted || !self.goes_on() || is_final(ended) {
            return self.close(&reason);
        }
        if self.is_alive() {
            self.generation += 1;
        }
        self.wake = None;
        let address = self.dialer.address();
        let event = match connected {
            true => ConnectionEvent::Lost { address, reason: reason.clone() },
            false => ConnectionEvent::Failed { address, reason: reason.clone() },
        };
        self.happened(&event);
        let hopeless = self.dialer.lost(os::now(), connected);
        self.requeue_unanswered();
        // Asked the same again, a server that has broken a rule would most likely do so again.
        let breach = matches!(ended, CloseReason::Peer(error) if error.is_protocol_violation());
        if hopeless || breach {
            self.mark_unreachable(reason);
        }
    }

    /// Everything that was sent and not answered waits again, in order, open transactions with what is asked of them.
    fn requeue_unanswered(&mut self) {
        let mut attach = Vec::new();
        for (txn, state) in &mut self.transactions {
            if let Txn::Here = state {
                *state = Txn::Attaching(Vec::new());
            }
            if let Txn::Attaching(_) = state {
                attach.push(Queued::Attach(*txn));
            }
        }
        let (waiters, waiting) = (std::mem::take(&mut self.waiters), std::mem::take(&mut self.waiting));
        self.waiting.extend(attach);
        for (id, waiter) in waiters {
            let ask = match waiter {
                Sent::Attach(_) => continue,
                Sent::Call { request, done } => Queued::Call { request, done },
                Sent::Upload { txn, oid, base, data, size, digest, done } => {
                    let source = self.outlets.take(id.into());
                    Queued::Upload { txn, oid, base, data, from: 0, size, digest, source, done }
                }
            };
            self.wait_again(Some(id), ask);
        }
        for ask in waiting {
            if !matches!(ask, Queued::Attach(_)) {
                self.wait_again(None, ask);
            }
        }
        self.outlets = OutgoingTransfers::default();
        // The sinks ask for the rest of their blobs.
        self.inlets.abort_all();
        for to in self.collectors.take_all() {
            self.after(move || to.enqueue());
        }
    }

    fn wait_again(&mut self, sent: Option<RequestId>, ask: Queued) {
        let txn = ask.txn();
        match (txn.and_then(|txn| self.transactions.get_mut(&txn)), ask) {
            // It was voted for: the server has committed it, or given it up.
            (Some(_), Queued::Call { request: Request::Finish { txn }, done }) if sent.is_some() => {
                self.transactions.remove(&txn);
                self.waiting.push_back(outcome(txn, Vec::new(), done));
            }
            (Some(Txn::Attaching(asks)), ask) => asks.push((sent, ask)),
            (_, ask) => self.waiting.push_back(ask),
        }
    }

    /// The server goes on with a transaction: what it has not done is asked again, blobs from where it has them.
    pub(super) fn attached(&mut self, txn: TxnId, last: RequestId, unfinished: &[Unfinished]) {
        let Some(state) = self.transactions.get_mut(&txn) else { return };
        let Txn::Attaching(asks) = std::mem::replace(state, Txn::Here) else { return };
        for (sent, ask) in asks.into_iter().rev() {
            let known = sent.filter(|id| *id <= last);
            let rest = known.and_then(|id| unfinished.iter().find(|rest| rest.request == id));
            match (ask, rest) {
                // Votes that were sent were held, or it could not go on.
                (ask, None) if known.is_some() && !ask.ends() => self.after(|| was_done(ask)),
                (Queued::Upload { txn, oid, base, data, size, digest, source, done, .. }, Some(rest)) => {
                    let off = u64::from(planted(Bug::ResumeOneByteOff) && rest.upto > 0);
                    let from = (rest.upto + off).min(size);
                    let ask = Queued::Upload { txn, oid, base, data, from, size, digest, source, done };
                    self.waiting.push_front(ask);
                }
                (ask, _) => self.waiting.push_front(ask),
            }
        }
    }

    /// The server does not go on with a transaction.
    pub(super) fn not_attached(&mut self, txn: TxnId, error: &RequestError) {
        let Some(state) = self.transactions.get_mut(&txn) else { return };
        let began = |ask: &Queued| matches!(ask, Queued::Call { request: Request::Begin { .. }, .. });
        let commits = |ask: &Queued| matches!(ask, Queued::Call { request: Request::Commit { .. }, .. });
        match state {
            // It never heard of it; or has made the commit already that was sent right behind.
            Txn::Attaching(asks)
                if matches!(error, RequestError::NoSuchTransaction { .. })
                    && asks.first().is_some_and(|(_, ask)| began(ask))
                    && !asks.iter().any(|(sent, ask)| sent.is_some() && commits(ask)) =>
            {
                let asks = std::mem::take(asks);
                *state = Txn::Here;
                asks.into_iter().rev().for_each(|(_, ask)| self.waiting.push_front(ask));
            }
            Txn::Attaching(_) => {
                self.give_up(
                    txn,
                    &format!("the connection was lost, and the server does not go on: {error}"),
                );
            }
            Txn::Here | Txn::Lost(_) => {}
        }
    }

    /// A transaction is lost. What became of a commit that was sent is asked for.
    fn give_up(&mut self, txn: TxnId, reason: &str) {
        let lost = self.transactions.insert(txn, Txn::Lost(reason.to_owned()));
        let Some(Txn::Attaching(asks)) = lost else { return };
        let mut before = Vec::new();
        for (sent, ask) in asks {
            match ask {
                ask if sent.is_some() && planted(Bug::RepeatCommit) => self.waiting.push_back(ask),
                Queued::Call { request: Request::Commit { txn }, done } if sent.is_some() => {
                    self.waiting.push_back(outcome(txn, std::mem::take(&mut before), done));
                }
                ask if sent.is_some() => before.push(ask),
                ask => self.ask_in(txn, ask),
            }
        }
        before.into_iter().for_each(|ask| self.ask_in(txn, ask));
    }

    /// Nobody waits any longer for another connection.
    fn mark_unreachable(&mut self, reason: String) {
        if self.down.is_none() {
            self.happened(&ConnectionEvent::OutOfPatience { reason: reason.clone() });
        }
        self.fail_all(&reason);
        self.down = Some(reason);
    }

    fn fail_all(&mut self, reason: &str) {
        let open: Vec<TxnId> = self.transactions.keys().copied().collect();
        open.into_iter().for_each(|txn| self.give_up(txn, reason));
        for ask in std::mem::take(&mut self.waiting) {
            let reason = reason.to_owned();
            self.after(move || ask.fail(CallError::Disconnected { reason }));
        }
    }

    /// See [`Session::close`](super::Session::close).
    pub(super) fn close(&mut self, reason: &str) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(reason.to_owned());
        self.listeners.clear();
        self.watchers.clear();
        for greeter in std::mem::take(&mut self.handshake_waiters) {
            let reason = reason.to_owned();
            self.after(move || greeter(Err(CallError::Disconnected { reason })));
        }
        self.requeue_unanswered();
        self.fail_all(reason);
        self.transactions.clear();
    }
}

/// Asks what became of a commit. It was made only if what was sent `before` it had been done, so that has come to the same.
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
        before.into_iter().for_each(|ask| ask.fail(error()));
        done(Err(error()));
    });
    Queued::Call { request: Request::Outcome { txn }, done }
}

/// The server has done it; only the answer was lost.
fn was_done(ask: Queued) {
    match ask {
        Queued::Call { done, .. } => done(Ok(Reply::Done)),
        Queued::Upload { digest: Some(digest), done, .. } => done(Ok(digest)),
        // A blob whose end was never sent can not be done.
        ask => ask.fail(CallError::unanswered()),
    }
}

/// Would another connection end in the same way?
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

    use blobferry_protocol::{Oid, Tid};

    use super::*;
    use crate::client::dial::{Addresses, Dialer, Reconnect};
    use blobferry_platform::pool::BlockingPool;

    const TXN: TxnId = TxnId([7; 16]);

    type Answers = Receiver<Result<Reply, CallError>>;

    /// A store and a commit were sent when the connection was lost; the server does not go on, and says this of it.
    fn lost_with_a_commit(outcome: Result<Outcome, CallError>) -> [Result<Reply, CallError>; 2] {
        let dialer = Dialer::new(Addresses::from("a:1"), Reconnect::default());
        let mut state = SessionState::new(dialer, 8, &BlockingPool::new(1));
        state.begin_generation(std::sync::Arc::new(|| {}));
        state.greeted = true;
        state.transactions.insert(TXN, Txn::Here);
        let store = Request::Store { txn: TXN, oid: Oid(1), base: Tid::ZERO, data: Vec::new() };
        let mut sent = |id, request| -> Answers {
            let (answer, answers) = channel();
            let done: Completion<Reply> = Box::new(move |result| answer.send(result).unwrap());
            state.waiters.insert(RequestId(id), Sent::Call { request, done });
            answers
        };
        let answers = [sent(1, store), sent(2, Request::Commit { txn: TXN })];
        state.lost(&CloseReason::Closed, true);
        state.not_attached(TXN, &RequestError::NoSuchTransaction { txn: TXN });
        state.take_after().into_iter().for_each(|act| act());
        let Some(Queued::Call { request: Request::Outcome { .. }, done }) = state.waiting.pop_back() else {
            panic!("the outcome is not asked for");
        };
        done(outcome.map(Reply::Outcome));
        answers.map(|answers| answers.recv().unwrap())
    }

    #[test]
    fn what_was_stored_before_a_commit_whose_answer_was_lost_is_not_said_to_have_failed() {
        let [stored, committed] = lost_with_a_commit(Ok(Outcome::Committed { tid: Tid(5) }));
        assert_eq!(stored.unwrap(), Reply::Done);
        assert_eq!(committed.unwrap(), Reply::Finished { tid: Tid(5) });

        let [stored, committed] = lost_with_a_commit(Ok(Outcome::NotCommitted));
        assert!(matches!(stored, Err(CallError::NotCommitted { .. })));
        assert!(matches!(committed, Err(CallError::NotCommitted { .. })));

        let [stored, committed] = lost_with_a_commit(Err(CallError::unanswered()));
        assert!(matches!(stored, Err(CallError::OutcomeUnknown { .. })));
        assert!(matches!(committed, Err(CallError::OutcomeUnknown { .. })));
    }
}
