//! The client side of a connection: it sends requests and uploads blobs.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use crate::call::{Call, Pending};
use crate::connection;
use crate::connection::{Accept, Config, Events, Link, Sealed, Side, TransferEvent};
use crate::error::{PeerError, UsageError};
use crate::ids::{Digest, Oid, RequestId, Tid, TransferId, TxnId};
use crate::message::{
    Hello, MAGIC, Message, Phase, Refusal, Reply, Request, RequestError, VERSIONS, Welcome,
};
use crate::planted::{Bug, planted};
use crate::time::Time;
use crate::wire;

/// A client's connection: [`connection::Connection`] with [`request`](Connection::request) and
/// [`upload`](Connection::upload).
pub type Connection = connection::Connection<Client>;

/// An event of a client's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is done.
    Connected(Welcome),
    /// The server has refused the connection, which is dead.
    Refused(Refusal),
    /// The one answer to a request. A [`Request::SendBlob`] has it only if no transfer begins.
    Reply {
        /// The request.
        id: RequestId,
        /// The answer.
        result: Result<Reply, RequestError>,
    },
    /// A transaction was committed. The event comes before any answer that exposes the transaction.
    Invalidate {
        /// The transaction.
        tid: Tid,
        /// The objects that it changed.
        oids: Vec<Oid>,
    },
    /// A requested blob arrives. [`TransferEvent::Stopped`] or [`TransferEvent::Aborted`] is the
    /// one answer to its request.
    Transfer(TransferEvent),
    /// The server is about to stop: it begins nothing new, and what is under way goes on.
    Goodbye,
}

/// The state of the client side.
#[derive(Debug)]
pub struct Client {
    last_request: u64,
    requests: BTreeMap<RequestId, Pending>,
    transactions: BTreeMap<TxnId, Txn>,
}

#[derive(Debug)]
struct Txn {
    /// Its `Begin` or `Attach`: an answer to an earlier request belongs to another transaction of
    /// the same name.
    begun: RequestId,
    phase: Phase,
}

impl Side for Client {
    type Event = Event;

    fn transfer_event(event: &Event) -> Option<&TransferEvent> {
        if let Event::Transfer(event) = event { Some(event) } else { None }
    }
}

impl From<TransferEvent> for Event {
    fn from(event: TransferEvent) -> Event {
        Event::Transfer(event)
    }
}

impl connection::Connection<Client> {
    /// Returns a connection that sends its hello with the first
    /// [`poll_transmit`](Self::poll_transmit).
    ///
    /// `credentials` identify the client to the server. They have at most 2048 bytes; the rest is
    /// cut off.
    #[must_use]
    pub fn new(now: Time, config: Config, credentials: &[u8]) -> Connection {
        let side = Client { last_request: 0, requests: BTreeMap::new(), transactions: BTreeMap::new() };
        let mut connection = Connection::with_side(now, config, side);
        connection.link.queue_small(&Message::Hello(Hello {
            magic: MAGIC,
            version_min: VERSIONS.0,
            version_max: VERSIONS.1,
            limits: config.limits,
            credentials: credentials.iter().copied().take(2048).collect(),
        }));
        connection
    }

    /// Like [`new`](Self::new), for a client that resumes transactions of an earlier connection.
    ///
    /// Requests are numbered above `last`, which was the [`last_request`](Self::last_request) of
    /// that connection. So each number in a [`Reply::Attached`] belongs to one request only.
    #[must_use]
    pub fn after(now: Time, config: Config, credentials: &[u8], last: RequestId) -> Connection {
        let mut connection = Connection::new(now, config, credentials);
        connection.side.last_request = last.0;
        connection
    }

    /// Returns the number of the last request; 0 before the first.
    #[must_use]
    pub fn last_request(&self) -> RequestId {
        RequestId(self.side.last_request)
    }

    /// Returns the number of downloads that have not ended, cancelled ones included.
    ///
    /// There are never more than the `transfers` of this side's [`Limits`](crate::Limits).
    #[must_use]
    pub fn downloads(&self) -> usize {
        let is_download = |pending: &&Pending| matches!(pending.call, Call::SendBlob { .. });
        self.side.requests.values().filter(is_download).count()
    }

    /// Returns the number of uploads whose end was not sent yet.
    ///
    /// There are never more than the `transfers` of the server's [`Limits`](crate::Limits).
    #[must_use]
    pub fn uploads(&self) -> usize {
        self.link.outgoing.len()
    }

    /// Queues a request. Exactly one answer will come, under the id that this returns.
    ///
    /// # Errors
    /// A [`UsageError`] if the request is not possible now. Nothing was queued then.
    pub fn request(&mut self, request: Request) -> Result<RequestId, UsageError> {
        if matches!(request, Request::StoreBlob { .. }) {
            return Err(UsageError::UseUpload);
        }
        self.send_request(request)
    }

    /// Stores an object's record with a blob of exactly `size` bytes. The transfer of the blob
    /// begins at once.
    ///
    /// If `digest` is `None`, call [`finish_blob`](Self::finish_blob) when all bytes have been
    /// read. The answer comes under the number of the transfer, when the server has the whole blob
    /// on disk.
    ///
    /// # Errors
    /// A [`UsageError`] if the upload is not possible now. Nothing was queued then.
    pub fn upload(
        &mut self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        size: u64,
        digest: Option<Digest>,
    ) -> Result<TransferId, UsageError> {
        self.resume_upload(txn, oid, base, data, 0..size, digest)
    }

    /// Like [`upload`](Self::upload), for a blob whose upload was interrupted.
    ///
    /// `rest.end` is the size of the blob. The server has the bytes below `rest.start` already, as
    /// [`Reply::Attached`] has said.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn resume_upload(
        &mut self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        rest: Range<u64>,
        digest: Option<Digest>,
    ) -> Result<TransferId, UsageError> {
        let Range { start: from, end: size } = rest;
        let limit = self.link.peer.transfers;
        if self.link.outgoing.len() >= limit as usize {
            return Err(UsageError::Limit { what: "transfers", limit: u64::from(limit) });
        }
        let transfer = TransferId::from(self.send_request(Request::StoreBlob { txn, oid, base, data })?);
        self.link.queue_small(&Message::BlobStart { transfer, from, end: size, size, digest });
        self.link.outgoing.start(transfer, from, size, digest);
        Ok(transfer)
    }

    fn send_request(&mut self, request: Request) -> Result<RequestId, UsageError> {
        self.link.usable()?;
        let (call, ends) = (Call::of(&request), request.ends());
        let limits = self.link.peer;
        if self.side.requests.len() >= limits.requests as usize {
            return Err(UsageError::Limit { what: "requests", limit: u64::from(limits.requests) });
        }
        if let Call::SendBlob { .. } = call {
            let limit = self.link.config.limits.transfers;
            if self.downloads() >= limit as usize {
                return Err(UsageError::Limit { what: "transfers", limit: u64::from(limit) });
            }
        }
        if self.link.closing && !ends {
            return Err(UsageError::Closing);
        }
        let step = self.side.next_phase(&request, limits.transactions)?;
        let repeat = planted(Bug::ReuseTransferId) && self.side.last_request % 16 == 15;
        let id = RequestId(self.side.last_request + u64::from(!repeat));
        // A request that ends a transaction is short, and must not wait behind other transactions.
        let message = Message::Request { id, request };
        if ends {
            self.link.queue(&message)?
        } else {
            self.link.queue_if_room(&message)?
        }
        self.side.last_request = id.0;
        self.side.requests.insert(id, call.into());
        if let Some((txn, phase)) = step {
            self.side.enter(txn, id, phase);
        }
        if let Call::Abort(txn) = call {
            self.abort_uploads(txn);
        }
        Ok(id)
    }

    /// Aborts the uploads of a transaction that is aborted.
    fn abort_uploads(&mut self, txn: TxnId) {
        let of_txn = self.side.requests.iter_mut().filter(|(_, pending)| pending.call == Call::Put(txn));
        for (id, pending) in of_txn {
            pending.aborted |= self.link.abort_blob((*id).into(), RequestError::Cancelled);
        }
    }

    /// Cancels a request. Its answer comes all the same, perhaps early; the bytes of a blob are
    /// dropped.
    ///
    /// # Errors
    /// [`UsageError::NoSuchRequest`] if the request does not wait for an answer.
    pub fn cancel(&mut self, id: RequestId) -> Result<(), UsageError> {
        self.link.usable()?;
        let pending = self.side.requests.get_mut(&id).ok_or(UsageError::NoSuchRequest(id))?;
        if !pending.cancelled {
            pending.cancelled = true;
            give_up(&mut self.link, id, pending, RequestError::Cancelled);
        }
        Ok(())
    }

    /// Returns the phase of a transaction of this connection; `None` if it is not open here.
    #[must_use]
    pub fn phase(&self, txn: TxnId) -> Option<Phase> {
        self.side.transactions.get(&txn).map(|txn| txn.phase)
    }
}

impl Client {
    /// Returns the phase that a request leads its transaction to; `Some((txn, None))` if the
    /// request ends it.
    fn next_phase(
        &self,
        request: &Request,
        limit: u32,
    ) -> Result<Option<(TxnId, Option<Phase>)>, UsageError> {
        let Some(txn) = request.txn() else { return Ok(None) };
        let current = self.transactions.get(&txn).map(|txn| txn.phase);
        if let Request::Begin { .. } | Request::Attach { .. } = request {
            if current.is_some() {
                return Err(UsageError::TransactionExists(txn));
            }
            if self.transactions.len() >= limit as usize {
                return Err(UsageError::Limit { what: "transactions", limit: u64::from(limit) });
            }
            return Ok(Some((txn, Some(Phase::Open))));
        }
        let Some(phase) = current else {
            // The transaction may be open at the server, after its connection was lost.
            let abort = matches!(request, Request::Abort { .. });
            return if abort { Ok(None) } else { Err(UsageError::NoSuchTransaction(txn)) };
        };
        let next = match (request, phase) {
            (Request::Vote { .. }, Phase::Open) => Some(Phase::Voting),
            (Request::Finish { .. }, Phase::Voted) => Some(Phase::Finishing),
            (Request::Commit { .. }, Phase::Open) => Some(Phase::Finishing),
            (Request::Abort { .. }, Phase::Open | Phase::Voting | Phase::Voted | Phase::Doomed) => None,
            (
                Request::Store { .. }
                | Request::StoreBlob { .. }
                | Request::StoreShared { .. }
                | Request::Delete { .. },
                Phase::Open,
            ) => Some(Phase::Open),
            _ => return Err(UsageError::WrongPhase { txn, phase }),
        };
        Ok(Some((txn, next)))
    }

    /// Moves a transaction to the phase that a sent request leads to, or to its end.
    fn enter(&mut self, txn: TxnId, id: RequestId, phase: Option<Phase>) {
        match phase {
            Some(phase) => self.transactions.entry(txn).or_insert(Txn { begun: id, phase }).phase = phase,
            None => drop(self.transactions.remove(&txn)),
        }
    }

    /// Applies an answer to the transaction of its request.
    fn answered(&mut self, id: RequestId, call: Call, result: &Result<Reply, RequestError>) {
        let (Call::Put(txn) | Call::Vote(txn) | Call::Finish(txn) | Call::Commit(txn) | Call::Attach(txn)) =
            call
        else {
            return;
        };
        // The transaction was aborted meanwhile.
        let Some(state) = self.transactions.get_mut(&txn).filter(|state| state.begun <= id) else { return };
        match (call, result) {
            (Call::Put(_), Err(_)) if state.phase == Phase::Open => state.phase = Phase::Doomed,
            // The vote that is under way will report the failure.
            (Call::Put(_), _) => {}
            (_, Ok(Reply::Attached { .. })) => {}
            (_, Ok(Reply::Voted)) => state.phase = Phase::Voted,
            (_, Ok(Reply::Conflicts(_))) => state.phase = Phase::Open,
            // Finished, or an error: both end the transaction.
            _ => drop(self.transactions.remove(&txn)),
        }
    }
}

impl Sealed for Client {
    const LONG: &'static [u8] = wire::LONG_TO_CLIENTS;

    fn message(
        &mut self,
        link: &mut Link,
        events: &mut Events<Client>,
        message: Message,
    ) -> Result<(), PeerError> {
        match message {
            Message::Welcome(welcome) if !link.connected => {
                if welcome.version < VERSIONS.0 || welcome.version > VERSIONS.1 {
                    return Err(PeerError::BadVersion(welcome.version));
                }
                Link::check(welcome.limits)?;
                link.connect(welcome.limits);
                events.push_back(Event::Connected(welcome));
                Ok(())
            }
            Message::Refuse(refusal) if !link.connected => {
                events.push_back(Event::Refused(refusal.clone()));
                Err(PeerError::Refused(refusal))
            }
            Message::Reply { id, result } => self.reply(link, events, id, result),
            Message::Invalidate { tid, oids } => {
                events.push_back(Event::Invalidate { tid, oids });
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
        from: u64,
        end: u64,
        size: u64,
    ) -> Result<Accept, PeerError> {
        match self.requests.get(&transfer.into()) {
            Some(&Pending { call: Call::SendBlob { from: requested, upto }, cancelled, .. }) => {
                if from != requested || end != upto.min(size) {
                    return Err(PeerError::BadTransfer { transfer, what: "it is not the requested range" });
                }
                Ok(if cancelled { Accept::Drop } else { Accept::Take })
            }
            _ => Err(PeerError::BadTransfer { transfer, what: "it was not requested" }),
        }
    }

    fn transfer_ends(
        &mut self,
        _: &mut Link,
        events: &mut Events<Client>,
        event: TransferEvent,
        wanted: bool,
    ) {
        let transfer = event.transfer();
        if self.requests.remove(&transfer.into()).is_some_and(|pending| pending.reported) {
            return;
        }
        let event =
            if wanted { event } else { TransferEvent::Aborted { transfer, reason: RequestError::Cancelled } };
        events.push_back(Event::Transfer(event));
    }

    fn transfer_stalls(
        &mut self,
        link: &mut Link,
        events: &mut Events<Client>,
        transfer: TransferId,
        reason: RequestError,
    ) {
        let id = transfer.into();
        let Some(pending) = self.requests.get_mut(&id) else { return };
        (pending.cancelled, pending.reported) = (true, true);
        let call = pending.call;
        events.push_back(if give_up(link, id, pending, reason.clone()) {
            let result = Err(reason);
            self.answered(id, call, &result);
            Event::Reply { id, result }
        } else {
            Event::Transfer(TransferEvent::Aborted { transfer, reason })
        });
    }

    fn sending_aborted(&mut self, transfer: TransferId) {
        if let Some(pending) = self.requests.get_mut(&transfer.into()) {
            pending.aborted = true;
        }
    }

    fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }

    fn has_voted(&self) -> bool {
        self.transactions.values().any(|txn| txn.phase == Phase::Voted)
    }
}

/// Cancels a request at the server; returns true if it was an upload.
fn give_up(link: &mut Link, id: RequestId, pending: &mut Pending, reason: RequestError) -> bool {
    // The abort of an upload makes a `Cancel` needless.
    let upload = link.abort_blob(id.into(), reason);
    pending.aborted |= upload;
    if !upload {
        link.incoming.drop_rest(id.into());
        link.queue_small(&Message::Cancel { id });
        link.grant();
    }
    upload
}

impl Client {
    fn reply(
        &mut self,
        link: &mut Link,
        events: &mut Events<Client>,
        id: RequestId,
        result: Result<Reply, RequestError>,
    ) -> Result<(), PeerError> {
        let wrong = |what| PeerError::WrongReply { id, what };
        let &Pending { call, reported, aborted, .. } =
            self.requests.get(&id).ok_or_else(|| wrong("it is not in flight"))?;
        if result.as_ref().is_ok_and(|reply| !call.fits(reply)) {
            return Err(wrong("the answer is of another kind"));
        }
        if link.incoming.contains(id.into()) {
            return Err(wrong("its transfer is under way"));
        }
        if result.is_ok() && (aborted || link.outgoing.contains(id.into())) {
            return Err(wrong("its blob is not complete"));
        }
        // The server has answered the upload early, and drops the rest of the blob.
        link.abort_blob(id.into(), RequestError::Cancelled);
        self.requests.remove(&id);
        if reported {
            return Ok(());
        }
        self.answered(id, call, &result);
        events.push_back(Event::Reply { id, result });
        Ok(())
    }
}
