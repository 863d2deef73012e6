//! How the server side handles each message, and what follows from each answer.

use alloc::vec::Vec;

use crate::call::Call;
use crate::connection::{self, Accept, Link, Sealed, TransferEvent};
use crate::error::PeerError;
use crate::ids::{RequestId, TransferId, TxnId};
use crate::message::{Hello, MAGIC, Message, Phase, Refusal, Reply, Request, RequestError, VERSIONS};
use crate::server::transactions::{Admit, Decision};
use crate::server::{Event, Greeting, Server, Upload};
use crate::wire;

type Events = connection::Events<Server>;

impl Sealed for Server {
    const LONG: &'static [u8] = wire::LONG_TO_SERVERS;

    fn message(&mut self, link: &mut Link, events: &mut Events, message: Message) -> Result<(), PeerError> {
        match message {
            Message::Hello(hello) if !link.connected && self.greeting.is_none() && !link.closing => {
                self.hello(link, events, hello)
            }
            Message::Request { id, request } => self.request(link, events, id, request),
            Message::Cancel { id } => {
                self.cancel(link, events, id);
                Ok(())
            }
            Message::Goodbye => {
                if link.peer_closes() {
                    events.push_back(Event::Goodbye);
                }
                Ok(())
            }
            message => Err(PeerError::Unexpected { message: message.name() }),
        }
    }

    fn transfer_starts(
        &mut self,
        transfer: TransferId,
        _from: u64,
        end: u64,
        size: u64,
    ) -> Result<Accept, PeerError> {
        let bad = |what| PeerError::BadTransfer { transfer, what };
        let upload = self.uploads.get_mut(&transfer).ok_or_else(|| bad("no request for it was made"))?;
        if upload.begun {
            return Err(bad("it has begun already"));
        }
        if end != size {
            return Err(bad("a blob is stored to its end"));
        }
        upload.begun = true;
        Ok(if upload.answered { Accept::Drop } else { Accept::Take })
    }

    fn transfer_ends(&mut self, link: &mut Link, events: &mut Events, event: TransferEvent, wanted: bool) {
        let transfer = event.transfer();
        self.uploads.remove(&transfer);
        // If the transfer has no sink, the caller has answered its request, or has discarded it and
        // will answer.
        if wanted {
            if let TransferEvent::Aborted { reason, .. } = &event {
                self.answer(link, events, transfer.into(), Err(reason.clone()));
            }
            events.push_back(Event::Transfer(event));
        }
    }

    fn transfer_stalls(
        &mut self,
        link: &mut Link,
        events: &mut Events,
        transfer: TransferId,
        reason: RequestError,
    ) {
        if self.uploads.contains_key(&transfer) {
            self.fail_upload(link, events, transfer, reason);
        } else {
            self.stop_sending(link, events, transfer, reason);
        }
    }

    fn sending_aborted(&mut self, _: TransferId) {}

    fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }

    fn has_voted(&self) -> bool {
        self.transactions.phases().any(|(_, phase)| phase == Phase::Voted)
    }
}

impl Server {
    /// Handles the hello of a client.
    fn hello(&mut self, link: &mut Link, events: &mut Events, hello: Hello) -> Result<(), PeerError> {
        if hello.magic != MAGIC {
            return Err(PeerError::BadMagic);
        }
        Link::check(hello.limits)?;
        let (min, max) = VERSIONS;
        if hello.version_min > max || hello.version_max < min {
            link.closing = true;
            link.queue_small(&Message::Refuse(Refusal::Version { min, max }));
            return Ok(());
        }
        self.greeting = Some(Greeting { limits: hello.limits, version: max.min(hello.version_max) });
        events.push_back(Event::Hello { credentials: hello.credentials });
        Ok(())
    }

    /// Handles a request.
    fn request(
        &mut self,
        link: &mut Link,
        events: &mut Events,
        id: RequestId,
        request: Request,
    ) -> Result<(), PeerError> {
        if id.0 <= self.last_request {
            return Err(PeerError::RequestOrder { id, last: RequestId(self.last_request) });
        }
        self.last_request = id.0;
        let limits = link.config.limits;
        if self.requests.len() >= limits.requests as usize {
            return Err(PeerError::TooManyRequests { limit: limits.requests });
        }
        if let Request::StoreBlob { txn, .. } = request {
            if self.uploads.len() >= limits.transfers as usize {
                return Err(PeerError::TooManyTransfers { limit: limits.transfers });
            }
            self.uploads.insert(id.into(), Upload { txn, begun: false, answered: false });
            link.incoming.expect(id.into());
        }
        let call = Call::of(&request);
        let admit = if link.closing && !request.ends() {
            Err(RequestError::Stopping)
        } else {
            self.transactions.admit(id, &request, limits.transactions)
        };
        match admit {
            Ok(admit) => {
                self.requests.insert(id, call.into());
                self.admitted(link, events, id, request, admit);
            }
            // The request never becomes a part of its transaction, so its answer does not count
            // there. But a commit must not succeed without what this request should have stored.
            Err(error) => {
                self.transactions.refused(&request);
                self.answer(link, events, id, Err(error));
            }
        }
        Ok(())
    }

    /// Handles a request that is allowed: passes it to the caller, keeps it, or answers it.
    fn admitted(
        &mut self,
        link: &mut Link,
        events: &mut Events,
        id: RequestId,
        request: Request,
        admit: Admit,
    ) {
        match admit {
            Admit::Pass => events.push_back(Event::Request { id, request }),
            Admit::Hold => {}
            Admit::Doomed(txn) => self.doomed(link, events, id, txn),
            Admit::Abort { txn, held } => {
                self.give_up(link, events, txn, held);
                events.push_back(Event::Request { id, request });
            }
        }
    }

    /// Refuses a vote or commit of a doomed transaction, and ends the transaction.
    fn doomed(&mut self, link: &mut Link, events: &mut Events, vote: RequestId, txn: TxnId) {
        events.push_back(Event::Abandoned { txn });
        self.answer(link, events, vote, Err(RequestError::Doomed { txn }));
    }

    /// Answers the uploads and the held vote of an aborted transaction. The caller does the rest.
    fn give_up(&mut self, link: &mut Link, events: &mut Events, txn: TxnId, held: Option<RequestId>) {
        let reason = || RequestError::Aborted { txn, reason: "the client gave it up".into() };
        let of_txn =
            |(id, upload): (&TransferId, &Upload)| (upload.txn == txn && !upload.answered).then_some(*id);
        let uploads: Vec<TransferId> = self.uploads.iter().filter_map(of_txn).collect();
        for transfer in uploads {
            self.fail_upload(link, events, transfer, reason());
        }
        if let Some(vote) = held {
            self.answer(link, events, vote, Err(reason()));
        }
    }

    /// Answers an upload before its end. The rest of its bytes is dropped.
    fn fail_upload(
        &mut self,
        link: &mut Link,
        events: &mut Events,
        transfer: TransferId,
        reason: RequestError,
    ) {
        self.answer(link, events, transfer.into(), Err(reason.clone()));
        events.push_back(Event::Transfer(TransferEvent::Aborted { transfer, reason }));
    }

    /// Handles the cancellation of a request.
    fn cancel(&mut self, link: &mut Link, events: &mut Events, id: RequestId) {
        let held = self.transactions.holds(id);
        match self.requests.get_mut(&id) {
            Some(pending) if !pending.cancelled && !held => {
                pending.cancelled = true;
                events.push_back(Event::Cancelled { id });
            }
            Some(_) => {}
            // If it is not being sent either, the answer and the cancel have crossed.
            None => self.stop_sending(link, events, id.into(), RequestError::Cancelled),
        }
    }

    /// Aborts the transfer of a blob to the client, if it has not ended.
    pub(super) fn stop_sending(
        &mut self,
        link: &mut Link,
        events: &mut Events,
        transfer: TransferId,
        reason: RequestError,
    ) {
        if link.abort_blob(transfer, reason) {
            events.push_back(Event::SendingAborted { transfer });
        }
    }

    /// Passes a vote on that has waited for earlier answers, or refuses it.
    fn release(&mut self, link: &mut Link, events: &mut Events, txn: TxnId, decision: Option<Decision>) {
        match decision {
            Some(Decision::Pass(id, request)) => events.push_back(Event::Request { id, request }),
            Some(Decision::Doomed(vote)) => self.doomed(link, events, vote, txn),
            None => {}
        }
    }

    /// Sends the one answer to a request, and moves its transaction to the next phase.
    pub(super) fn answer(
        &mut self,
        link: &mut Link,
        events: &mut Events,
        id: RequestId,
        result: Result<Reply, RequestError>,
    ) {
        let (mut ok, mut phase) = (result.is_ok(), phase_after(&result));
        let conflicts = phase == Some(Phase::Open);
        if let Err(too_long) = link.queue(&Message::Reply { id, result }) {
            (ok, phase) = (false, None);
            let result = Err(too_long.of("the length of the answer"));
            link.queue_small(&Message::Reply { id, result });
        }
        if let Some(upload) = self.uploads.get_mut(&id.into()) {
            upload.answered = true;
        }
        // The bytes that a sink has not stored yet do not matter any more.
        link.incoming.drop_rest(id.into());
        link.grant();
        match self.requests.remove(&id).map(|pending| pending.call) {
            Some(Call::Put(txn)) => {
                let decision = self.transactions.put_answered(txn, id, ok);
                self.release(link, events, txn, decision);
            }
            Some(Call::Attach(txn)) => {
                let decision = self.transactions.attached(txn, id, ok);
                self.release(link, events, txn, decision);
            }
            Some(Call::Vote(txn) | Call::Finish(txn) | Call::Commit(txn)) => {
                self.transactions.decided(txn, id, phase);
                if conflicts && !ok {
                    // The conflicts did not fit. The caller has left the transaction open, and the
                    // client has ended it.
                    events.push_back(Event::Abandoned { txn });
                }
            }
            _ => {}
        }
    }
}

/// Returns the phase of a transaction after an answer to a vote, finish or commit; `None` if it is
/// over.
fn phase_after(result: &Result<Reply, RequestError>) -> Option<Phase> {
    match result {
        Ok(Reply::Voted) => Some(Phase::Voted),
        Ok(Reply::Conflicts(_)) => Some(Phase::Open),
        _ => None,
    }
}
