//! The server's half of a connection: it answers. It knows the phases of every transaction on its connection, so
//! that what is behind it hears only what makes sense.

mod side;
mod transactions;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use crate::call::{Call, Pending};
use crate::connection;
use crate::connection::{Config, Side, TransferEvent};
use crate::error::UsageError;
use crate::ids::{Digest, Oid, RequestId, Tid, TransferId, TxnId};
use crate::limits::Limits;
use crate::message::{Message, Phase, Refusal, Reply, Request, RequestError, Welcome};
use crate::time::Time;
use transactions::Transactions;

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
    /// everything stored before it was answered. An error that answers a vote, a finish or a commit ends the
    /// transaction: abort it before.
    Request {
        /// The request.
        id: RequestId,
        /// What is asked for.
        request: Request,
    },
    /// The answer to this request is not wanted any more: give it early, as [`RequestError::Cancelled`], or not. A
    /// blob that is sent all the same is aborted by the machine ([`Event::SendingAborted`]).
    Cancelled {
        /// The request.
        id: RequestId,
    },
    /// This transaction is over without having been asked for: abort it. Nobody waits for an answer.
    Abandoned {
        /// The transaction.
        txn: TxnId,
    },
    /// A blob that is stored arrives. After [`TransferEvent::Aborted`] its request is answered already; that may come
    /// without a [`TransferEvent::Started`] before it.
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
    greeting: Option<Greeting>,
    last_request: u64,
    requests: BTreeMap<RequestId, Pending>,
    /// Uploads whose transfer has not ended.
    uploads: BTreeMap<TransferId, Upload>,
    transactions: Transactions,
}

/// What a client's hello comes to.
#[derive(Clone, Copy, Debug)]
struct Greeting {
    limits: Limits,
    version: u16,
}

#[derive(Debug)]
struct Upload {
    txn: TxnId,
    begun: bool,
    /// Its request was answered already.
    answered: bool,
}

impl Side for Server {
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

impl connection::Connection<Server> {
    /// A connection that waits for a client's hello.
    #[must_use]
    pub fn new(now: Time, config: Config) -> Connection {
        Connection::with_side(now, config, Server::default())
    }

    /// Accepts the client that said hello.
    ///
    /// # Errors
    /// Nobody said hello, or the handshake is done.
    pub fn welcome(&mut self, last_tid: Tid) -> Result<(), UsageError> {
        let Greeting { version, limits: peer } = self.greeted()?;
        let limits = self.link.config.limits;
        self.link.queue_small(&Message::Welcome(Welcome { version, limits, last_tid }));
        self.link.connect(peer);
        Ok(())
    }

    /// Sends the client away. Send what [`poll_transmit`](Self::poll_transmit) gives, then close the socket.
    ///
    /// # Errors
    /// Nobody said hello, or the handshake is done.
    pub fn refuse(&mut self, refusal: Refusal) -> Result<(), UsageError> {
        self.greeted()?;
        self.side.greeting = None;
        self.link.closing = true;
        self.link.queue_small(&Message::Refuse(refusal));
        Ok(())
    }

    fn greeted(&self) -> Result<Greeting, UsageError> {
        if self.link.connected {
            return Err(UsageError::Connected);
        }
        self.link.alive().map_err(UsageError::Dead)?;
        self.side.greeting.ok_or(UsageError::NotConnected)
    }

    /// Answers a request.
    ///
    /// May bring an event: a vote that waited for this answer.
    ///
    /// # Errors
    /// A request that does not wait for an answer (any more: the machine answers the uploads of a transaction that is
    /// aborted), or an answer of another kind.
    pub fn reply(&mut self, id: RequestId, result: Result<Reply, RequestError>) -> Result<(), UsageError> {
        self.link.usable()?;
        let call = self.side.requests.get(&id).ok_or(UsageError::NoSuchRequest(id))?.call;
        let complete = !self.side.uploads.contains_key(&id.into());
        let wrong = result.as_ref().is_ok_and(|reply| !call.fits(reply) || !complete);
        if wrong || self.side.transactions.holds(id) {
            return Err(UsageError::WrongReply(id));
        }
        self.side.answer(&mut self.link, &mut self.events, id, result);
        Ok(())
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
        let request = self.side.requests.get(&transfer.into());
        let Some(&Pending { call: Call::SendBlob { from, upto }, cancelled, .. }) = request else {
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
        self.side.requests.remove(&transfer.into());
        if cancelled {
            let reason = RequestError::Cancelled;
            self.side.stop_sending(&mut self.link, &mut self.events, transfer, reason);
        }
        Ok(from..end)
    }

    /// Tells the client of a commit. To be called in commit order, and before any answer that exposes it. Of a commit
    /// that changed no object nothing is said.
    ///
    /// # Errors
    /// A dead connection, or one whose handshake is not done.
    pub fn invalidate(&mut self, tid: Tid, oids: &[Oid]) -> Result<(), UsageError> {
        self.link.usable()?;
        // An oid takes at most 10 bytes, all the rest of the message less than 32.
        let list = (self.link.peer.frame as usize).saturating_sub(32) / 10;
        let (first, more) = oids.split_at(oids.len().min(list.clamp(1, Limits::LIST)));
        // Also where nothing has changed: the peer has to know how far it knows.
        self.link.queue(&Message::Invalidate { tid, oids: first.to_vec() })?;
        for oids in more.chunks(list.clamp(1, Limits::LIST)) {
            self.link.queue(&Message::Invalidate { tid, oids: oids.to_vec() })?;
        }
        Ok(())
    }

    /// The transactions that are open, and their phases: what a connection that breaks leaves behind.
    pub fn transactions(&self) -> impl Iterator<Item = (TxnId, Phase)> + '_ {
        self.side.transactions.phases()
    }

    /// Is this blob still being sent?
    #[must_use]
    pub fn is_sending(&self, transfer: TransferId) -> bool {
        self.link.outgoing.contains(transfer)
    }
}
