//! One connection: what both halves share.
//!
//! [`Connection`] is generic over its [`Side`]: [`client::Connection`](crate::client::Connection) and
//! [`server::Connection`](crate::server::Connection) are the two there are. Everything on this page is the same for
//! both; what only one of them can do stands in its own module.

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

/// A connection's machine: bytes and calls in, bytes and events out. It knows no socket, no file and no clock.
///
/// The run loop of a transport, in any order and as often as it likes:
///
/// 1. [`poll_transmit`](Self::poll_transmit) until `None`, sending what it says;
/// 2. bytes that arrive go where [`expect`](Self::expect) says: [`handle_control`](Self::handle_control), or the sink
///    of a transfer, then [`payload_moved`](Self::payload_moved);
/// 3. [`poll_event`](Self::poll_event) until `None` after every call of `handle_control`, before payload is moved; and
///    on a server after every `reply` and `start_blob`, too: the last answer to a store may let a vote go that waited
///    for it;
/// 4. when [`poll_timeout`](Self::poll_timeout) has passed, [`handle_timeout`](Self::handle_timeout), and `poll_event`
///    again. The timeout changes only with calls that take `&mut self`;
/// 5. when [`error`](Self::error) says something, or the half's `is_finished` does and all was sent, close the socket.
///    Any call that has something to say may find that the peer does not read, which is an error too.
///
/// After a [`PeerError`] the connection is dead: every call says so, and nothing is sent any more.
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

    /// Appends what is to be sent next to `head`: all control messages that wait, then the head of one chunk whose
    /// payload the transport sends behind it. `None`: nothing to send now.
    pub fn poll_transmit(&mut self, now: Time, head: &mut Vec<u8>) -> Option<Transmit> {
        self.link.poll_transmit(now, head)
    }

    /// What the next bytes from the peer are.
    #[must_use]
    pub fn expect(&self) -> Expect {
        self.link.receive.expect()
    }

    /// Takes bytes from the peer: as many as are not payload, and says how many those were. The rest belongs where
    /// [`expect`](Self::expect) says. However the stream is cut into calls, the events are the same.
    ///
    /// # Errors
    /// The rule that the peer broke. The connection is dead.
    pub fn handle_control(&mut self, now: Time, bytes: &[u8]) -> Result<usize, PeerError> {
        self.link.alive()?;
        self.link.tick(now);
        if !bytes.is_empty() {
            self.link.liveness.heard(now);
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

    /// The transport has moved `n` bytes of the payload that is expected.
    ///
    /// # Errors
    /// More than was expected. Nothing has changed.
    pub fn payload_moved(&mut self, now: Time, n: u64) -> Result<(), UsageError> {
        self.link.usable()?;
        let slice = self.link.receive.payload_moved(n)?;
        if let Some(slice) = slice.filter(|_| n > 0) {
            self.link.tick(now);
            self.link.liveness.heard(now);
            self.link.incoming.moved(slice.transfer, n);
            self.link.grant();
            self.link.tick(now);
        }
        Ok(())
    }

    /// The sink of a transfer towards this side has taken all bytes below the offset `upto` of the blob. This, and
    /// nothing else, opens the window for more.
    ///
    /// Every transfer wants this for all its bytes, after its end too, or a [`discard`](Self::discard): else the
    /// connection's window stays that much smaller.
    ///
    /// # Errors
    /// A transfer that is over and stored or aborted (a sink that is behind may ignore this), or bytes that never
    /// arrived, or fewer than before. Nothing has changed.
    pub fn stored(&mut self, transfer: TransferId, upto: u64) -> Result<(), UsageError> {
        self.link.usable()?;
        self.link.incoming.stored(transfer, upto)?;
        self.link.grant();
        Ok(())
    }

    /// The sink of a transfer towards this side takes no more: what is left of it is dropped as it comes. Does nothing
    /// where the transfer is over.
    ///
    /// A client should [`cancel`](crate::client::Connection::cancel) the request too, so that the rest is not sent. A
    /// server hears no more of the transfer, and answers its request with the reason.
    pub fn discard(&mut self, transfer: TransferId) {
        self.link.incoming.drop_rest(transfer);
        if self.link.usable().is_ok() {
            self.link.grant();
        }
    }

    /// The next thing that the caller has to know.
    pub fn poll_event(&mut self) -> Option<S::Event> {
        let event = self.events.pop_front();
        if event.is_none() {
            // A burst's memory is not kept by a connection that falls silent.
            self.events = Events::<S>::new();
        }
        event
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called; `None` on a dead connection.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.link.poll_timeout()
    }

    /// Does what is due: a ping, giving up transfers that get nowhere, or the connection. Calling it too early does
    /// nothing. May bring events.
    ///
    /// # Errors
    /// The peer has been silent for too long. The connection is dead.
    pub fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError> {
        self.link.handle_timeout(now)?;
        for transfer in self.link.stalled() {
            let reason = self.link.stalled_reason();
            self.side.transfer_stalls(&mut self.link, &mut self.events, transfer, reason);
        }
        self.link.alive()
    }

    /// All bytes of an outgoing blob have been read, and this is their digest. Needed where it was not known when
    /// the transfer began.
    ///
    /// # Errors
    /// A transfer that is not under way.
    pub fn finish_blob(&mut self, transfer: TransferId, digest: Digest) -> Result<(), UsageError> {
        self.link.usable()?;
        self.link.outgoing.finish(transfer, digest)
    }

    /// Gives up an outgoing blob: its source failed, or nobody wants it any more.
    ///
    /// # Errors
    /// A transfer that is not under way.
    pub fn abort_blob(&mut self, transfer: TransferId, reason: RequestError) -> Result<(), UsageError> {
        self.link.usable()?;
        if self.link.abort_blob(transfer, reason) {
            self.side.sending_aborted(transfer);
            Ok(())
        } else {
            Err(UsageError::NoSuchTransfer(transfer))
        }
    }

    /// Says that nothing new begins from here on. What is under way goes on to its end; then
    /// [`is_finished`](Self::is_finished).
    ///
    /// # Errors
    /// A dead connection, or one whose handshake is not done: just close it.
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

    /// Returns true if a side has said goodbye, or the server has refused the client, and everything under way has
    /// ended: the caller can close the socket.
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

    /// Is the handshake done?
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.connected
    }

    /// Has one of the sides said goodbye?
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.link.closing
    }

    /// Why the connection is dead, where it is.
    #[must_use]
    pub fn error(&self) -> Option<&PeerError> {
        self.link.dead.as_ref()
    }

    /// What the peer can take; the least there is before the handshake is done.
    #[must_use]
    pub fn peer_limits(&self) -> Limits {
        self.link.peer
    }

    /// Control bytes that wait to be sent. A caller that has much to say waits while this is large: a server takes no
    /// more requests and reads nothing then, for beyond [`Limits::control_queue`] the connection is given up.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.link.outgoing.backlog()
    }
}
