//! One connection: what both sides share.
//!
//! [`Connection`] is generic over its [`Side`]: [`client::Connection`](crate::client::Connection)
//! and [`server::Connection`](crate::server::Connection) are the two kinds. Everything on this page
//! is the same for both. The module of each side has what only that side can do.

mod config;
mod incoming;
mod link;
mod liveness;
mod outgoing;
mod progress;
mod receive;
mod side;
mod transfer;

use alloc::vec::Vec;

use crate::error::{PeerError, UsageError};
use crate::ids::{Digest, TransferId};
use crate::limits::Limits;
use crate::message::{Message, RequestError};
use crate::time::Time;

pub use config::Config;
pub(crate) use incoming::Accept;
pub(crate) use link::Link;
pub use side::Side;
pub(crate) use side::{Events, Sealed};
pub use transfer::{Expect, Slice, TransferEvent, Transmit};

/// A connection as a state machine: bytes and calls in, bytes and events out. It uses no socket,
/// file or clock.
///
/// A transport makes these calls, in any order and as often as it likes:
///
/// 1. [`poll_transmit`](Self::poll_transmit) until it returns `None`. Send what each call returns.
/// 2. Bytes that arrive go where [`expect`](Self::expect) says: to
///    [`handle_control`](Self::handle_control), or to the sink of a transfer, followed by
///    [`payload_moved`](Self::payload_moved).
/// 3. [`poll_event`](Self::poll_event) until it returns `None`, after every `handle_control` and
///    before payload is moved. On a server also after every `reply` and `start_blob`: the last
///    answer to a store may release a vote.
/// 4. When [`poll_timeout`](Self::poll_timeout) has passed,
///    [`handle_timeout`](Self::handle_timeout), then `poll_event` again. The timeout changes only
///    with calls that take `&mut self`.
/// 5. When [`error`](Self::error) returns an error, or [`is_finished`](Self::is_finished) returns
///    true, close the socket. Any call that queues a message may find that the peer does not read,
///    which is an error too.
///
/// After a [`PeerError`] the connection is dead: every call returns that error, and nothing is sent
/// any more.
#[derive(Debug)]
pub struct Connection<S: Side> {
    pub(crate) link: Link,
    pub(crate) side: S,
    pub(crate) events: Events<S>,
}

impl<S: Side> Connection<S> {
    pub(crate) fn with_side(now: Time, config: Config, side: S) -> Connection<S> {
        Connection { link: Link::new(now, config), side, events: alloc::collections::VecDeque::new() }
    }

    /// Appends what is to be sent next to `head`: all control messages that wait, then the head of
    /// at most one chunk. The transport sends the payload of the chunk behind it. Returns `None` if
    /// there is nothing to send now.
    pub fn poll_transmit(&mut self, now: Time, head: &mut Vec<u8>) -> Option<Transmit> {
        self.link.poll_transmit(now, head)
    }

    /// Returns what the next bytes from the peer are.
    #[must_use]
    pub fn expect(&self) -> Expect {
        self.link.receive.expect()
    }

    /// Processes bytes from the peer up to the next payload, and returns their number. The rest
    /// belongs where [`expect`](Self::expect) says.
    ///
    /// The events do not depend on how the stream is cut into calls.
    ///
    /// # Errors
    /// The rule that the peer broke. The connection is dead.
    pub fn handle_control(&mut self, now: Time, bytes: &[u8]) -> Result<usize, PeerError> {
        self.link.alive()?;
        self.link.tick(now);
        if !bytes.is_empty() {
            self.link.liveness.arrived(now);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let max = self.link.max_frame();
            let step = self.link.receive.take(rest, max, S::LONG).and_then(|(used, message)| {
                rest = rest.get(used..).unwrap_or_default();
                match message {
                    Some(message) => self.dispatch(message),
                    None => Ok(()),
                }
            });
            step.map_err(|error| self.link.die(error))?;
            self.link.alive()?;
            if matches!(self.link.receive.expect(), Expect::Payload(_)) {
                break;
            }
        }
        self.link.tick(now);
        Ok(bytes.len() - rest.len())
    }

    fn dispatch(&mut self, message: Message) -> Result<(), PeerError> {
        let link = &mut self.link;
        if !link.connected && !matches!(message, Message::Hello(_) | Message::Welcome(_) | Message::Refuse(_))
        {
            return Err(PeerError::Unexpected { message: message.name() });
        }
        match message {
            Message::Ping { nonce } => link.pong(nonce),
            Message::Pong { .. } => Ok(()),
            Message::Credit { transfer, upto } => link.outgoing.credit(transfer, upto),
            Message::ConnectionCredit { upto } => link.outgoing.connection_credit(upto),
            Message::BlobStart { transfer, from, end, size, digest } => {
                if from > end || end > size {
                    return Err(PeerError::BadTransfer { transfer, what: "its range is not in the blob" });
                }
                let accept = self.side.transfer_starts(transfer, from, end, size)?;
                link.incoming.start(transfer, from, end, accept, link.config.limits)?;
                if accept == Accept::Take {
                    let event = TransferEvent::Started { transfer, from, end, size, digest };
                    self.events.push_back(event.into());
                }
                Ok(())
            }
            Message::BlobChunk { transfer, offset, len } => {
                let slice = link.incoming.chunk(transfer, offset, len, link.config.limits)?;
                link.receive.payload_follows(slice);
                Ok(())
            }
            Message::BlobStop { transfer, digest } => {
                let wanted = link.incoming.stop(transfer)?;
                let event = TransferEvent::Stopped { transfer, digest };
                self.side.transfer_ends(link, &mut self.events, event, wanted);
                link.grant();
                Ok(())
            }
            Message::BlobAbort { transfer, reason } => {
                let wanted = link.incoming.abort(transfer)?;
                let event = TransferEvent::Aborted { transfer, reason };
                self.side.transfer_ends(link, &mut self.events, event, wanted);
                link.grant();
                Ok(())
            }
            message => self.side.message(link, &mut self.events, message),
        }
    }

    /// Reports that the transport has moved the next `n` bytes of payload.
    ///
    /// # Errors
    /// [`UsageError::NotExpected`] if fewer bytes are expected. Nothing has changed.
    pub fn payload_moved(&mut self, now: Time, n: u64) -> Result<(), UsageError> {
        self.link.usable()?;
        let slice = self.link.receive.payload_moved(n)?;
        if let Some(slice) = slice.filter(|_| n > 0) {
            self.link.tick(now);
            self.link.liveness.arrived(now);
            self.link.incoming.moved(slice.transfer, n);
            self.link.grant();
            self.link.tick(now);
        }
        Ok(())
    }

    /// Reports that the sink of a transfer to this side has stored all bytes below the offset
    /// `upto` of the blob.
    ///
    /// Only this call opens the window for more bytes. Every transfer needs it for all its bytes,
    /// also after its end, or a [`discard`](Self::discard). Otherwise the connection's window stays
    /// smaller by the missing bytes.
    ///
    /// # Errors
    /// * [`UsageError::NoSuchTransfer`] if the transfer is over, and either stored or aborted. A
    ///   slow sink may ignore this.
    /// * [`UsageError::BadRange`] if those bytes have not arrived, or `upto` is lower than before.
    ///
    /// Nothing has changed then.
    pub fn stored(&mut self, transfer: TransferId, upto: u64) -> Result<(), UsageError> {
        self.link.usable()?;
        self.link.incoming.stored(transfer, upto)?;
        self.link.grant();
        Ok(())
    }

    /// Drops the rest of a transfer to this side as it arrives. Does nothing if the transfer is
    /// over.
    ///
    /// A client should also [`cancel`](crate::client::Connection::cancel) the request, so that the
    /// server does not send the rest. A server gets no more events of the transfer, and has to
    /// answer its request with the reason.
    pub fn discard(&mut self, transfer: TransferId) {
        self.link.incoming.drop_rest(transfer);
        if self.link.usable().is_ok() {
            self.link.grant();
        }
    }

    /// Returns the next event, if there is one.
    pub fn poll_event(&mut self) -> Option<S::Event> {
        let event = self.events.pop_front();
        if event.is_none() {
            // An idle connection does not keep the memory of a burst.
            self.events = Events::<S>::new();
        }
        event
    }

    /// Returns the time of the next [`handle_timeout`](Self::handle_timeout); `None` on a dead
    /// connection.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.link.poll_timeout()
    }

    /// Does what is due: sends a ping, gives up transfers without progress, or ends the connection.
    /// May produce events.
    ///
    /// A call before [`poll_timeout`](Self::poll_timeout) does nothing.
    ///
    /// # Errors
    /// [`PeerError::Silent`] or [`PeerError::HandshakeTimeout`] if the peer has been silent for too
    /// long. The connection is dead.
    pub fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError> {
        self.link.handle_timeout(now)?;
        for transfer in self.link.stalled() {
            let reason = self.link.stalled_reason();
            self.side.transfer_stalls(&mut self.link, &mut self.events, transfer, reason);
        }
        self.link.alive()
    }

    /// Sets the digest of an outgoing blob, all of whose bytes have been read.
    ///
    /// Needed if the digest was not known when the transfer began.
    ///
    /// # Errors
    /// [`UsageError::NoSuchTransfer`] if the transfer is not under way, [`UsageError::BadRange`] if
    /// bytes of it are still to be sent.
    pub fn finish_blob(&mut self, transfer: TransferId, digest: Digest) -> Result<(), UsageError> {
        self.link.usable()?;
        self.link.outgoing.finish(transfer, digest)
    }

    /// Aborts an outgoing blob, for example because its source has failed.
    ///
    /// # Errors
    /// [`UsageError::NoSuchTransfer`] if the transfer is not under way.
    pub fn abort_blob(&mut self, transfer: TransferId, reason: RequestError) -> Result<(), UsageError> {
        self.link.usable()?;
        if self.link.abort_blob(transfer, reason) {
            self.side.sending_aborted(transfer);
            Ok(())
        } else {
            Err(UsageError::NoSuchTransfer(transfer))
        }
    }

    /// Announces that nothing new begins. What is under way goes on to its end, and then
    /// [`is_finished`](Self::is_finished) returns true.
    ///
    /// # Errors
    /// [`UsageError::Dead`] or [`UsageError::NotConnected`]: close the socket.
    pub fn goodbye(&mut self) -> Result<(), UsageError> {
        self.link.usable()?;
        if !self.link.closing {
            self.link.closing = true;
            self.link.queue_small(&Message::Goodbye);
        }
        Ok(())
    }

    /// Returns the number of requests without an answer.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.side.requests_in_flight()
    }

    /// Returns true if a side has said goodbye, or the server has refused the client, and
    /// everything under way has ended: the caller can close the socket.
    ///
    /// A transaction that is voted is under way; one that is only open is not.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.link.closing
            && !self.side.has_voted()
            && self.requests_in_flight() == 0
            && self.backlog() == 0
            && self.link.outgoing.len() == 0
    }

    /// Returns true if the handshake is done.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.connected
    }

    /// Returns true if one of the sides has said goodbye.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.link.closing
    }

    /// Returns the error that ended the connection, if it is dead.
    #[must_use]
    pub fn error(&self) -> Option<&PeerError> {
        self.link.dead.as_ref()
    }

    /// Returns the limits of the peer; [`Limits::MIN`] until the handshake is done.
    #[must_use]
    pub fn peer_limits(&self) -> Limits {
        self.link.peer
    }

    /// Returns the number of control bytes that wait to be sent.
    ///
    /// While it is large, a server should read nothing: beyond [`Limits::control_queue`] the
    /// connection ends with [`PeerError::NotReading`].
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.link.outgoing.backlog()
    }
}
