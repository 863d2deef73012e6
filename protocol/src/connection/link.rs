//! The state that both sides share: one queue of control bytes, transfers in both directions,
//! liveness, and errors.

use alloc::vec::Vec;

use crate::connection::config::Config;
use crate::connection::incoming::Incoming;
use crate::connection::liveness::{Due, Liveness};
use crate::connection::outgoing::Outgoing;
use crate::connection::receive::Receive;
use crate::connection::transfer::Transmit;
use crate::error::{PeerError, UsageError};
use crate::ids::TransferId;
use crate::limits::Limits;
use crate::message::{Deadline, Message, RequestError};
use crate::time::Time;
use crate::wire::EncodeError;

/// The most pongs that may wait for one write. A peer that sends more pings without reading floods
/// the connection.
const PONGS: u32 = 64;

/// A message that is longer than the peer takes. Nothing was queued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooLong {
    error: EncodeError,
    max: u32,
}

impl From<TooLong> for UsageError {
    fn from(TooLong { error, .. }: TooLong) -> UsageError {
        match error {
            EncodeError::TooLong { len, max } => UsageError::TooLong { len, max },
            EncodeError::ListTooLong => {
                UsageError::Limit { what: "elements of a list", limit: Limits::LIST as u64 }
            }
        }
    }
}

impl TooLong {
    /// Returns the error that the peer gets in place of the message.
    pub(crate) fn of(self, what: &str) -> RequestError {
        let actual = match self.error {
            EncodeError::TooLong { len, .. } => len,
            EncodeError::ListTooLong => u64::MAX,
        };
        RequestError::Limit { what: what.into(), limit: u64::from(self.max), actual }
    }
}

#[derive(Debug)]
pub struct Link {
    pub(crate) config: Config,
    /// The peer's limits; [`Limits::MIN`] until the peer has announced them.
    pub(crate) peer: Limits,
    pub(crate) connected: bool,
    /// A side has said goodbye.
    pub(crate) closing: bool,
    /// The peer has said goodbye.
    peer_closing: bool,
    pub(crate) dead: Option<PeerError>,
    pub(crate) receive: Receive,
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Outgoing,
    pub(crate) liveness: Liveness,
    pongs: u32,
}

impl Link {
    pub(crate) fn new(now: Time, config: Config) -> Link {
        Link {
            config,
            peer: Limits::MIN,
            connected: false,
            closing: false,
            peer_closing: false,
            dead: None,
            receive: Receive::default(),
            incoming: Incoming::new(config.limits.connection_window),
            outgoing: Outgoing::default(),
            liveness: Liveness::new(now, &config),
            pongs: 0,
        }
    }

    /// Checks that the limits of a peer are not below [`Limits::MIN`].
    pub(crate) fn check(peer: Limits) -> Result<(), PeerError> {
        let min = Limits::MIN;
        let works = peer.frame >= min.frame
            && peer.chunk >= min.chunk
            && peer.transfer_window >= min.transfer_window
            && peer.connection_window >= min.connection_window
            && peer.transfers >= min.transfers
            && peer.requests >= min.requests
            && peer.transactions >= min.transactions
            && peer.control_queue >= min.control_queue;
        if works { Ok(()) } else { Err(PeerError::BadLimits(peer)) }
    }

    /// Ends the handshake. The limits of the peer were [checked](Self::check).
    pub(crate) fn connect(&mut self, peer: Limits) {
        self.peer = peer;
        self.outgoing.connect(peer);
        self.connected = true;
        self.liveness.connected();
    }

    /// Returns the longest frame that the peer may send now.
    pub(crate) fn max_frame(&self) -> u32 {
        if self.connected { self.config.limits.frame } else { Limits::HANDSHAKE_FRAME }
    }

    pub(crate) fn alive(&self) -> Result<(), PeerError> {
        self.dead.clone().map_or(Ok(()), Err)
    }

    /// Returns an error if the connection is dead, or its handshake is not done.
    pub(crate) fn usable(&self) -> Result<(), UsageError> {
        match &self.dead {
            Some(error) => Err(UsageError::Dead(error.clone())),
            None if self.connected => Ok(()),
            None => Err(UsageError::NotConnected),
        }
    }

    /// Ends the connection, and returns the first error that did so.
    pub(crate) fn die(&mut self, error: PeerError) -> PeerError {
        self.dead.get_or_insert(error).clone()
    }

    /// Queues a message.
    ///
    /// # Errors
    /// The message is longer than the peer accepts. If too many bytes wait, the connection ends,
    /// which is not an error of this call.
    pub(crate) fn queue(&mut self, message: &Message) -> Result<(), TooLong> {
        let max = if self.connected { self.peer.frame } else { Limits::HANDSHAKE_FRAME };
        let waiting = self.outgoing.queue(message, max).map_err(|error| TooLong { error, max })?;
        if waiting > self.config.limits.control_queue as usize {
            self.die(PeerError::NotReading { waiting: waiting as u64 });
        }
        Ok(())
    }

    /// Queues a message that can be sent later, unless more than half of the queue would be full
    /// then. The other half is reserved for messages that cannot wait.
    pub(crate) fn queue_if_room(&mut self, message: &Message) -> Result<(), UsageError> {
        let room = self.config.limits.control_queue / 2;
        let (before, max) = (self.outgoing.backlog(), self.peer.frame.min(room));
        let waiting = self.outgoing.queue(message, max).map_err(|error| TooLong { error, max })?;
        if before > 0 && waiting > room as usize {
            self.outgoing.unqueue(before);
            return Err(UsageError::Limit { what: "bytes that wait to be sent", limit: room.into() });
        }
        Ok(())
    }

    /// Queues a message whose size is bounded below every limit.
    pub(crate) fn queue_small(&mut self, message: &Message) {
        // `Limits::MIN` ensures that a small message fits.
        let fits = self.queue(message);
        debug_assert!(fits.is_ok(), "{message:?}");
    }

    pub(crate) fn pong(&mut self, nonce: u64) -> Result<(), PeerError> {
        if self.pongs == PONGS {
            return Err(PeerError::Flood { message: "Ping" });
        }
        self.pongs += 1;
        self.queue_small(&Message::Pong { nonce });
        Ok(())
    }

    /// Notes a goodbye of the peer; returns false if it has said so before.
    pub(crate) fn peer_closes(&mut self) -> bool {
        self.closing = true;
        !core::mem::replace(&mut self.peer_closing, true)
    }

    /// Announces the credit that has become due.
    pub(crate) fn grant(&mut self) {
        while let Some(message) = self.incoming.next_grant(self.config.limits) {
            self.queue_small(&message);
        }
    }

    /// Aborts an outgoing transfer; returns true if it was under way.
    pub(crate) fn abort_blob(&mut self, transfer: TransferId, reason: RequestError) -> bool {
        let running = self.outgoing.remove(transfer);
        if running && let Err(error) = self.queue(&Message::BlobAbort { transfer, reason }) {
            self.queue_small(&Message::BlobAbort { transfer, reason: error.of("the length of the reason") });
        }
        running
    }

    /// Advances the time. Every call with a time does so before and after its work.
    pub(crate) fn tick(&mut self, now: Time) {
        self.liveness.tick(now);
        let (now, timeout) = (self.liveness.now(), self.config.transfer_timeout);
        self.incoming.progress.date(now, timeout);
        self.outgoing.progress.date(now, timeout);
    }

    pub(crate) fn poll_transmit(&mut self, now: Time, head: &mut Vec<u8>) -> Option<Transmit> {
        if self.dead.is_some() {
            return None;
        }
        self.tick(now);
        self.pongs = 0;
        let transmit = self.outgoing.poll(self.peer.chunk, head);
        self.tick(now);
        transmit
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        if self.dead.is_some() {
            return None;
        }
        let sweeps = [self.incoming.progress.sweep(), self.outgoing.progress.sweep()];
        sweeps.into_iter().flatten().chain([self.liveness.next(&self.config)]).min()
    }

    /// Returns the transfers, in either direction, without progress for
    /// [`transfer_timeout`](Config::transfer_timeout), and forgets their deadlines.
    pub(crate) fn stalled(&mut self) -> Vec<TransferId> {
        let (now, timeout) = (self.liveness.now(), self.config.transfer_timeout);
        let mut stalled = self.incoming.progress.overdue(now, timeout);
        stalled.extend(self.outgoing.progress.overdue(now, timeout));
        stalled
    }

    /// Returns the error for those transfers.
    pub(crate) fn stalled_reason(&self) -> RequestError {
        Deadline::Transfer.passed(self.config.transfer_timeout)
    }

    pub(crate) fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError> {
        self.alive()?;
        self.tick(now);
        match self.liveness.due(now, &self.config) {
            Due::Nothing => Ok(()),
            Due::Ping { nonce } => {
                self.queue_small(&Message::Ping { nonce });
                Ok(())
            }
            Due::HandshakeTimeout => {
                let after = self.config.handshake_timeout;
                Err(self.die(PeerError::HandshakeTimeout { after }))
            }
            Due::Silent => Err(self.die(PeerError::Silent { after: self.config.silence_limit })),
        }
    }
}
