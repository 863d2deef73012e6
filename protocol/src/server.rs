//! The server's half of a connection: it answers. It knows the phases of every transaction on its connection, so
//! that what is behind it hears only what makes sense.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use crate::call::Call;
use crate::connection::sealed::{Events, Sealed};
use crate::connection::{self, Accept, Config, Half, Link, TransferEvent, name_of};
use crate::error::{PeerError, UsageError};
use crate::limits::Limits;
use crate::message::{MAGIC, Message, Phase, Refusal, Reply, Request, RequestError, VERSIONS, Welcome};
use crate::time::Time;
use crate::words::{Digest, Oid, RequestId, Tid, TransferId, TxnId};

/// A server's connection. Beside what [`connection::Connection`] offers: [`welcome`](Connection::welcome),
/// [`reply`](Connection::reply), [`start_blob`](Connection::start_blob) and [`invalidate`](Connection::invalidate).
pub type Connection = connection::Connection<Server>;

/// What a server has to know, or to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client has called: [`welcome`](Connection::welcome) it or [`refuse`](Connection::refuse) it.
    Hello {
        /// What proves who it is.
        credentials: Vec<u8>,
    },
    /// Wants exactly one answer: a [`reply`](Connection::reply), or for a [`Request::SendBlob`] a
    /// [`start_blob`](Connection::start_blob). A [`Request::StoreBlob`] is answered when its transfer has stopped and
    /// its bytes are durable. Requests of one transaction come in an order that makes sense; a vote comes only when
    /// everything stored before it was answered.
    Request {
        /// The request.
        id: RequestId,
        /// What is asked for.
        request: Request,
    },
    /// The answer to this request is not wanted any more: give it early, as [`RequestError::Cancelled`], or not.
    Cancelled {
        /// The request.
        id: RequestId,
    },
    /// This transaction is over without having been asked for: abort it. Nobody waits for an answer.
    Abandoned {
        /// The transaction.
        txn: TxnId,
    },
    /// A blob that is stored arrives. After [`TransferEvent::Aborted`] its request is answered already.
    Transfer(TransferEvent),
    /// The sending of this blob has ended early: drop its source.
    SendingAborted {
        /// The transfer.
        transfer: TransferId,
    },
    /// The client begins nothing new.
    Goodbye,
}

/// The state of the server's half.
#[derive(Debug, Default)]
pub struct Server {
    greeting: Option<Limits>,
    last_request: u64,
    requests: BTreeMap<RequestId, Call>,
    /// Uploads whose transfer has not ended: the transaction, and whether it has begun.
    uploads: BTreeMap<TransferId, Upload>,
    transactions: BTreeMap<TxnId, Txn>,
}

#[derive(Debug)]
struct Upload {
    txn: TxnId,
    begun: bool,
    /// Its request was answered already.
    answered: bool,
}

#[derive(Debug)]
struct Txn {
    phase: Phase,
    /// Requests that put something into it and are not answered.
    pending: u32,
    /// A vote or commit that waits for those.
    held: Option<(RequestId, Request)>,
}

impl Half for Server {}

impl From<TransferEvent> for Event {
    fn from(event: TransferEvent) -> Event {
        Event::Transfer(event)
    }
}

impl connection::Connection<Server> {
    /// A connection that waits for a client's hello.
    #[must_use]
    pub fn new(now: Time, config: Config) -> Connection {
        Connection::with_half(now, config, Server::default())
    }

    /// Accepts the client that said hello.
    ///
    /// # Errors
    /// Nobody said hello, or the handshake is done.
    pub fn welcome(&mut self, last_tid: Tid) -> Result<(), UsageError> {
        let peer = self.greeted()?;
        let limits = self.link.config.limits;
        self.link.queue_small(&Message::Welcome(Welcome { version: VERSIONS.1, limits, last_tid }));
        // Checked when the hello came.
        self.link.connect(peer).map_err(UsageError::Dead)
    }

    /// Sends the client away. Send what [`poll_transmit`](Self::poll_transmit) gives, then close the socket.
    ///
    /// # Errors
    /// Nobody said hello, or the handshake is done.
    pub fn refuse(&mut self, refusal: Refusal) -> Result<(), UsageError> {
        self.greeted()?;
        self.half.greeting = None;
        self.link.closing = true;
        self.link.queue_small(&Message::Refuse(refusal));
        Ok(())
    }

    fn greeted(&self) -> Result<Limits, UsageError> {
        if self.link.connected {
            return Err(UsageError::Connected);
        }
        self.link.alive().map_err(UsageError::Dead)?;
        self.half.greeting.ok_or(UsageError::NotConnected)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// A request that does not wait for an answer, or one of another kind.
    pub fn reply(&mut self, id: RequestId, result: Result<Reply, RequestError>) -> Result<(), UsageError> {
        self.link.usable()?;
        let call = *self.half.requests.get(&id).ok_or(UsageError::NoSuchRequest(id))?;
        let complete = !self.half.uploads.contains_key(&id.into());
        if result.as_ref().is_ok_and(|reply| !call.fits(reply) || !complete) {
            return Err(UsageError::WrongReply(id));
        }
        self.half.answer(&mut self.link, &mut self.events, id, result)
    }

    /// Answers a [`Request::SendBlob`] with the blob: the range that is sent of it. The transport reads it when
    /// [`poll_transmit`](Self::poll_transmit) says so.
    ///
    /// # Errors
    /// A request that does not wait for a blob, or whose range is not in it: that wants a [`reply`](Self::reply) of
    /// [`RequestError::BadRange`].
    pub fn start_blob(
        &mut self,
        transfer: TransferId,
        size: u64,
        digest: Digest,
    ) -> Result<Range<u64>, UsageError> {
        self.link.usable()?;
        let Some(&Call::SendBlob { from, upto }) = self.half.requests.get(&transfer.into()) else {
            return Err(UsageError::NoSuchTransfer(transfer));
        };
        let end = upto.min(size);
        if from > end {
            return Err(UsageError::BadRange(transfer));
        }
        let limit = self.link.peer.transfers;
        if self.link.outgoing.len() >= limit as usize {
            return Err(UsageError::Limit { what: "transfers", limit: u64::from(limit) });
        }
        self.link.queue_small(&Message::BlobStart { transfer, from, end, size, digest: Some(digest) });
        self.link.outgoing.start(transfer, from, end, Some(digest));
        self.half.requests.remove(&transfer.into());
        Ok(from..end)
    }

    /// Tells the client of a commit. To be called in commit order, and before any answer that exposes it.
    ///
    /// # Errors
    /// A dead connection, or one whose handshake is not done.
    pub fn invalidate(&mut self, tid: Tid, oids: &[Oid]) -> Result<(), UsageError> {
        self.link.usable()?;
        // An oid takes at most 10 bytes, all the rest of the message less than 32.
        let list = (self.link.peer.frame as usize).saturating_sub(32) / 10;
        for oids in oids.chunks(list.clamp(1, Limits::LIST)) {
            self.link.queue(&Message::Invalidate { tid, oids: oids.to_vec() })?;
        }
        Ok(())
    }

    /// The transactions that are open: what a connection that breaks leaves to be aborted.
    pub fn transactions(&self) -> impl Iterator<Item = TxnId> + '_ {
        self.half.transactions.keys().copied()
    }

    /// Is this blob still being sent?
    #[must_use]
    pub fn is_sending(&self, transfer: TransferId) -> bool {
        self.link.outgoing.contains(transfer)
    }

    /// Requests that wait for their answer.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.half.requests.len()
    }

    /// After a goodbye from either side, or a refusal: is everything that was under way at its end, so that the
    /// socket can be closed? A transaction that was voted for is under way; one that is only open is not.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let voted = self.half.transactions.values().any(|txn| txn.phase == Phase::Voted);
        self.link.closing
            && !voted
            && self.half.requests.is_empty()
            && self.backlog() == 0
            && self.link.outgoing.len() == 0
    }
}

impl Server {
    /// Sends the one answer to a request, and moves its transaction on.
    fn answer(
        &mut self,
        link: &mut Link,
        events: &mut Events<Server>,
        id: RequestId,
        mut result: Result<Reply, RequestError>,
    ) -> Result<(), UsageError> {
        if let Err(UsageError::TooLong { len, max }) =
            link.queue(&Message::Reply { id, result: result.clone() })
        {
            result = Err(RequestError::Limit {
                what: "the length of the answer".into(),
                limit: u64::from(max),
                actual: len,
            });
            link.queue(&Message::Reply { id, result: result.clone() })?;
        }
        if let Some(upload) = self.uploads.get_mut(&id.into()) {
            upload.answered = true;
        }
        // Where its sink is not done with it, nobody waits for that any more.
        link.incoming.drop_rest(id.into());
        link.grant();
        let Some(call) = self.requests.remove(&id) else { return Ok(()) };
        match call {
            Call::Put(txn) => self.put_answered(link, events, txn, result.is_ok())?,
            Call::Vote(txn) | Call::Finish(txn) | Call::Commit(txn) => {
                if let Some(state) = self.transactions.get_mut(&txn) {
                    match result {
                        Ok(Reply::Voted) => state.phase = Phase::Voted,
                        Ok(Reply::Conflicts(_)) => state.phase = Phase::Open,
                        _ => drop(self.transactions.remove(&txn)),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Something put into a transaction was answered: a failure dooms it, the last answer lets a held vote go.
    fn put_answered(
        &mut self,
        link: &mut Link,
        events: &mut Events<Server>,
        txn: TxnId,
        ok: bool,
    ) -> Result<(), UsageError> {
        let Some(state) = self.transactions.get_mut(&txn) else { return Ok(()) };
        state.pending = state.pending.saturating_sub(1);
        if !ok && state.phase == Phase::Open {
            state.phase = Phase::Doomed;
        }
        if state.pending == 0 {
            if let Some((id, request)) = state.held.take() {
                return self.decide(link, events, id, request);
            }
        }
        Ok(())
    }

    /// A vote or a commit whose transaction is complete.
    fn decide(
        &mut self,
        link: &mut Link,
        events: &mut Events<Server>,
        id: RequestId,
        request: Request,
    ) -> Result<(), UsageError> {
        let Some(txn) = request.txn() else { return Ok(()) };
        let Some(state) = self.transactions.get_mut(&txn) else { return Ok(()) };
        if state.phase == Phase::Doomed {
            events.push_back(Event::Abandoned { txn });
            return self.answer(link, events, id, Err(RequestError::Doomed { txn }));
        }
        state.phase =
            if matches!(request, Request::Commit { .. }) { Phase::Finishing } else { Phase::Voting };
        events.push_back(Event::Request { id, request });
        Ok(())
    }

    /// A request has arrived.
    fn request(
        &mut self,
        link: &mut Link,
        events: &mut Events<Server>,
        id: RequestId,
        request: Request,
    ) -> Result<(), PeerError> {
        if id.0 <= self.last_request {
            return Err(PeerError::RequestOrder { id, last: RequestId(self.last_request) });
        }
        let limit = link.config.limits.requests;
        if self.requests.len() >= limit as usize {
            return Err(PeerError::TooManyRequests { limit });
        }
        self.last_request = id.0;
        self.requests.insert(id, Call::of(&request));
        if let Request::StoreBlob { txn, .. } = request {
            if self.uploads.len() >= link.config.limits.transfers as usize {
                return Err(PeerError::TooManyTransfers { limit: link.config.limits.transfers });
            }
            self.uploads.insert(id.into(), Upload { txn, begun: false, answered: false });
        }
        let decided = match self.admit(link, id, &request) {
            Ok(Admit::Pass) => {
                events.push_back(Event::Request { id, request });
                Ok(())
            }
            Ok(Admit::Hold) => Ok(()),
            Ok(Admit::Decide) => self.decide(link, events, id, request),
            Ok(Admit::Abort) => self.abort(link, events, id, request),
            Err(error) => {
                // It never became a part of its transaction, so the answer must not count as one of those. But what
                // should have been stored and is not must not be missing from a commit.
                self.requests.remove(&id);
                self.doom(&request);
                self.answer(link, events, id, Err(error))
            }
        };
        // An answer of the machine's own fits every frame; and the link is alive, for it was just heard.
        debug_assert!(decided.is_ok());
        Ok(())
    }

    /// Something that belongs to an open transaction was refused.
    fn doom(&mut self, request: &Request) {
        let Call::Put(txn) = Call::of(request) else { return };
        if matches!(request, Request::Begin { .. }) {
            return;
        }
        if let Some(state) = self.transactions.get_mut(&txn).filter(|state| state.phase == Phase::Open) {
            state.phase = Phase::Doomed;
        }
    }

    /// The rules of a transaction: what may be asked in which phase. Changes the phase only where that needs no
    /// answer first.
    fn admit(&mut self, link: &Link, id: RequestId, request: &Request) -> Result<Admit, RequestError> {
        let ends =
            matches!(request, Request::Finish { .. } | Request::Abort { .. } | Request::Outcome { .. });
        if link.closing && !ends {
            return Err(RequestError::Stopping);
        }
        let Some(txn) = request.txn() else { return Ok(Admit::Pass) };
        if let Request::Begin { meta, .. } = request {
            let size = meta.user.len() + meta.description.len();
            limit("the transaction's user and description", MAX_META, size as u64)?;
            if self.transactions.contains_key(&txn) {
                return Err(RequestError::TransactionExists { txn });
            }
            let open = self.transactions.len() as u64 + 1;
            limit("open transactions", u64::from(link.config.limits.transactions), open)?;
            self.transactions.insert(txn, Txn { phase: Phase::Open, pending: 1, held: None });
            return Ok(Admit::Pass);
        }
        let Some(state) = self.transactions.get_mut(&txn) else {
            let unknown_is_fine = matches!(request, Request::Abort { .. });
            return if unknown_is_fine {
                Ok(Admit::Pass)
            } else {
                Err(RequestError::NoSuchTransaction { txn })
            };
        };
        let wrong = RequestError::WrongPhase { txn, phase: state.phase };
        match request {
            Request::Vote { .. } | Request::Commit { .. } => {
                if !matches!(state.phase, Phase::Open | Phase::Doomed) || state.held.is_some() {
                    Err(wrong)
                } else if state.pending > 0 {
                    state.held = Some((id, request.clone()));
                    Ok(Admit::Hold)
                } else {
                    Ok(Admit::Decide)
                }
            }
            Request::Finish { .. } if state.phase == Phase::Voted => {
                state.phase = Phase::Finishing;
                Ok(Admit::Pass)
            }
            Request::Abort { .. } if state.phase != Phase::Finishing => Ok(Admit::Abort),
            Request::Finish { .. } | Request::Abort { .. } => Err(wrong),
            // All that is left puts something into the transaction.
            _ if state.phase == Phase::Doomed => Err(RequestError::Doomed { txn }),
            _ if state.phase != Phase::Open || state.held.is_some() => Err(wrong),
            _ => {
                state.pending += 1;
                Ok(Admit::Pass)
            }
        }
    }

    /// Ends a transaction on request: its uploads and its held vote are answered, the rest is the store's.
    fn abort(
        &mut self,
        link: &mut Link,
        events: &mut Events<Server>,
        id: RequestId,
        request: Request,
    ) -> Result<(), UsageError> {
        let Some(txn) = request.txn() else { return Ok(()) };
        let held = self.transactions.remove(&txn).and_then(|state| state.held);
        let error = || RequestError::Aborted { txn, reason: "the client gave it up".into() };
        let uploads: Vec<TransferId> = self
            .uploads
            .iter()
            .filter(|(_, upload)| upload.txn == txn && !upload.answered)
            .map(|(transfer, _)| *transfer)
            .collect();
        for transfer in uploads {
            self.answer(link, events, transfer.into(), Err(error()))?;
            let event = TransferEvent::Aborted { transfer, reason: error() };
            events.push_back(Event::Transfer(event));
        }
        if let Some((vote, _)) = held {
            self.answer(link, events, vote, Err(error()))?;
        }
        events.push_back(Event::Request { id, request });
        Ok(())
    }
}

/// What to do with a request that is allowed.
enum Admit {
    /// It is for the caller.
    Pass,
    /// It waits in its transaction.
    Hold,
    /// A vote or commit that can be decided now.
    Decide,
    /// It ends its transaction.
    Abort,
}

/// The most bytes of a transaction's user and description together.
const MAX_META: u64 = 64 << 10;

fn limit(what: &str, limit: u64, actual: u64) -> Result<(), RequestError> {
    if actual > limit { Err(RequestError::Limit { what: what.into(), limit, actual }) } else { Ok(()) }
}

impl Sealed for Server {
    type Event = Event;

    fn message(
        &mut self,
        link: &mut Link,
        events: &mut Events<Server>,
        message: Message,
    ) -> Result<(), PeerError> {
        match message {
            Message::Hello(hello) if !link.connected && self.greeting.is_none() && !link.closing => {
                if hello.magic != MAGIC {
                    return Err(PeerError::BadMagic);
                }
                Link::check(hello.limits)?;
                if hello.version_min > VERSIONS.1 || hello.version_max < VERSIONS.0 {
                    link.closing = true;
                    let (min, max) = VERSIONS;
                    link.queue_small(&Message::Refuse(Refusal::Version { min, max }));
                    return Ok(());
                }
                self.greeting = Some(hello.limits);
                events.push_back(Event::Hello { credentials: hello.credentials });
                Ok(())
            }
            Message::Request { id, request } => self.request(link, events, id, request),
            Message::Cancel { id } => {
                let held =
                    self.transactions.values().any(|txn| matches!(txn.held, Some((vote, _)) if vote == id));
                if self.requests.contains_key(&id) && !held {
                    events.push_back(Event::Cancelled { id });
                } else if link.outgoing.contains(id.into()) {
                    let aborted = link.abort_blob(id.into(), RequestError::Cancelled);
                    debug_assert!(aborted.is_ok());
                    events.push_back(Event::SendingAborted { transfer: id.into() });
                }
                // Else the answer and the cancel have crossed on the way.
                Ok(())
            }
            Message::Goodbye => {
                link.closing = true;
                events.push_back(Event::Goodbye);
                Ok(())
            }
            message => Err(PeerError::Unexpected { message: name_of(&message) }),
        }
    }

    fn transfer_starts(
        &mut self,
        transfer: TransferId,
        from: u64,
        end: u64,
        size: u64,
    ) -> Result<Accept, PeerError> {
        let bad = |what| PeerError::BadTransfer { transfer, what };
        let upload = self.uploads.get_mut(&transfer).ok_or_else(|| bad("no request for it was made"))?;
        if upload.begun {
            return Err(bad("it has begun already"));
        }
        if from != 0 || end != size {
            return Err(bad("a blob is stored as a whole"));
        }
        upload.begun = true;
        Ok(if upload.answered { Accept::Drop } else { Accept::Take })
    }

    fn transfer_ends(
        &mut self,
        link: &mut Link,
        events: &mut Events<Server>,
        event: TransferEvent,
        wanted: bool,
    ) {
        let transfer = event.transfer();
        self.uploads.remove(&transfer);
        if !wanted {
            return;
        }
        if let TransferEvent::Aborted { reason, .. } = &event {
            let answered = self.answer(link, events, transfer.into(), Err(reason.clone()));
            debug_assert!(answered.is_ok());
        }
        events.push_back(Event::Transfer(event));
    }
}
