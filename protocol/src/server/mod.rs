//! The server side of a connection: it answers requests and sends blobs.
//!
//! It knows the phase of every transaction of its connection, and passes only requests on that fit
//! the phase.

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

/// A server's connection: [`connection::Connection`] with [`welcome`](Connection::welcome),
/// [`reply`](Connection::reply), [`start_blob`](Connection::start_blob) and
/// [`invalidate`](Connection::invalidate).
pub type Connection = connection::Connection<Server>;

/// An event of a server's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client has said hello: [`welcome`](Connection::welcome) it or
    /// [`refuse`](Connection::refuse) it.
    Hello {
        /// What identifies the client.
        credentials: Vec<u8>,
    },
    /// A request. Answer it exactly once: with a [`reply`](Connection::reply), or a
    /// [`Request::SendBlob`] with a [`start_blob`](Connection::start_blob).
    ///
    /// * Answer a [`Request::StoreBlob`] when its transfer has stopped and its bytes are durable.
    /// * The requests of one transaction come in an allowed order. A vote or a commit comes only
    ///   after every earlier store was answered.
    /// * An error in answer to a vote, a finish or a commit ends the transaction on both sides. So
    ///   abort the transaction in the store first, and then send the error.
    Request {
        /// The request.
        id: RequestId,
        /// The request itself.
        request: Request,
    },
    /// The client has cancelled this request. The server may answer it early with
    /// [`RequestError::Cancelled`].
    ///
    /// A blob that the server sends all the same is aborted by the connection
    /// ([`Event::SendingAborted`]).
    Cancelled {
        /// The request.
        id: RequestId,
    },
    /// The connection has ended this transaction without a request of the client. Abort it, and
    /// answer nothing.
    Abandoned {
        /// The transaction.
        txn: TxnId,
    },
    /// The blob of a [`Request::StoreBlob`] arrives.
    ///
    /// At [`TransferEvent::Aborted`] the connection has answered the request already. That event
    /// may come without a [`TransferEvent::Started`].
    Transfer(TransferEvent),
    /// The transfer of this blob to the client has ended early: drop its source.
    SendingAborted {
        /// The transfer.
        transfer: TransferId,
    },
    /// The client begins nothing new.
    Goodbye,
}

/// The state of the server side.
#[derive(Debug, Default)]
pub struct Server {
    greeting: Option<Greeting>,
    last_request: u64,
    requests: BTreeMap<RequestId, Pending>,
    /// Uploads whose transfer has not ended.
    uploads: BTreeMap<TransferId, Upload>,
    transactions: Transactions,
}

/// What the server keeps of a client's hello.
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
    /// Returns a connection that waits for the hello of a client.
    #[must_use]
    pub fn new(now: Time, config: Config) -> Connection {
        Connection::with_side(now, config, Server::default())
    }

    /// Accepts the client, which learns the last committed transaction.
    ///
    /// # Errors
    /// [`UsageError::NotConnected`] if no hello has arrived, [`UsageError::Connected`] if the
    /// handshake is done.
    pub fn welcome(&mut self, last_tid: Tid) -> Result<(), UsageError> {
        let Greeting { version, limits: peer } = self.greeted()?;
        let limits = self.link.config.limits;
        self.link.queue_small(&Message::Welcome(Welcome { version, limits, last_tid }));
        self.link.connect(peer);
        Ok(())
    }

    /// Refuses the client. Send what [`poll_transmit`](Self::poll_transmit) returns, then close the
    /// socket.
    ///
    /// # Errors
    /// [`UsageError::NotConnected`] if no hello has arrived, [`UsageError::Connected`] if the
    /// handshake is done.
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
    /// May produce an event: a vote that has waited for this answer.
    ///
    /// # Errors
    /// * [`UsageError::NoSuchRequest`] if the request does not wait for an answer. The connection
    ///   itself answers the uploads of an aborted transaction.
    /// * [`UsageError::WrongReply`] if the reply does not fit the request.
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

    /// Answers a [`Request::SendBlob`] with a blob of `size` bytes, and returns the range of it
    /// that is sent.
    ///
    /// The transport reads the bytes when [`poll_transmit`](Self::poll_transmit) returns a slice of
    /// them.
    ///
    /// # Errors
    /// * [`UsageError::NoSuchTransfer`] if the request does not wait for a blob.
    /// * [`UsageError::BadRange`] if the requested range is not in the blob. [`reply`](Self::reply)
    ///   with [`RequestError::BadRange`] then.
    /// * [`UsageError::Limit`] if the client accepts no more transfers at once.
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

    /// Notifies the client of a commit and the objects that it changed.
    ///
    /// Call this in commit order, and before any answer that exposes the commit. A commit that
    /// changed no object is announced too.
    ///
    /// # Errors
    /// [`UsageError::Dead`] or [`UsageError::NotConnected`].
    pub fn invalidate(&mut self, tid: Tid, oids: &[Oid]) -> Result<(), UsageError> {
        self.link.usable()?;
        // An oid takes at most 10 bytes, and the rest of the message less than 32.
        let list = (self.link.peer.frame as usize).saturating_sub(32) / 10;
        let (first, more) = oids.split_at(oids.len().min(list.clamp(1, Limits::LIST)));
        // Also if no object has changed: the client has to know the last tid.
        self.link.queue(&Message::Invalidate { tid, oids: first.to_vec() })?;
        for oids in more.chunks(list.clamp(1, Limits::LIST)) {
            self.link.queue(&Message::Invalidate { tid, oids: oids.to_vec() })?;
        }
        Ok(())
    }

    /// Returns the open transactions and their phases: what remains to be done when the connection
    /// breaks.
    pub fn transactions(&self) -> impl Iterator<Item = (TxnId, Phase)> + '_ {
        self.side.transactions.phases()
    }

    /// Returns true if this blob is still being sent.
    #[must_use]
    pub fn is_sending(&self, transfer: TransferId) -> bool {
        self.link.outgoing.contains(transfer)
    }
}
