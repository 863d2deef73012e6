//! The liveness of the peer: the deadlines of the handshake and of silence, and the ping before the
//! latter.

use crate::connection::config::Config;
use crate::time::Time;

#[derive(Debug)]
pub(crate) struct Liveness {
    now: Time,
    /// `None` when the handshake is done.
    handshake_deadline: Option<Time>,
    last_arrival: Time,
    /// The time of the last ping, if nothing has arrived since.
    pinged: Option<Time>,
    pings: u64,
}

/// What is due at a timeout.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Ping { nonce: u64 },
    HandshakeTimeout,
    Silent,
}

impl Liveness {
    pub(crate) fn new(now: Time, config: &Config) -> Liveness {
        Liveness {
            now,
            handshake_deadline: Some(now + config.handshake_timeout),
            last_arrival: now,
            pinged: None,
            pings: 0,
        }
    }

    /// Advances the time. It never goes backwards, even if the caller's clock does.
    pub(crate) fn tick(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// Returns the latest time.
    pub(crate) fn now(&self) -> Time {
        self.now
    }

    pub(crate) fn arrived(&mut self, now: Time) {
        self.tick(now);
        self.last_arrival = self.now;
        self.pinged = None;
    }

    pub(crate) fn connected(&mut self) {
        self.handshake_deadline = None;
    }

    pub(crate) fn next(&self, config: &Config) -> Time {
        match (self.handshake_deadline, self.pinged) {
            (Some(deadline), _) => deadline,
            (None, None) => self.last_arrival + config.ping_after,
            (None, Some(pinged)) => pinged + config.silence_limit.saturating_sub(config.ping_after),
        }
    }

    /// Returns what is due. Silence counts from the ping on, so a process that was stopped for an
    /// hour pings first.
    pub(crate) fn due(&mut self, now: Time, config: &Config) -> Due {
        self.tick(now);
        if self.now < self.next(config) {
            Due::Nothing
        } else if self.handshake_deadline.is_some() {
            Due::HandshakeTimeout
        } else if self.pinged.is_some() {
            Due::Silent
        } else {
            self.pinged = Some(self.now);
            self.pings += 1;
            Due::Ping { nonce: self.pings }
        }
    }
}
