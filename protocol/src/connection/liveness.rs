//! Is the peer still there? Deadlines for the handshake and for silence, and the ping between them.

use crate::connection::config::Config;
use crate::time::Time;

#[derive(Debug)]
pub(crate) struct Liveness {
    now: Time,
    /// Until the handshake is done.
    handshake_deadline: Option<Time>,
    last_heard: Time,
    /// When a ping was sent, if nothing was heard since.
    pinged: Option<Time>,
    pings: u64,
}

/// What a timeout asks for.
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
            last_heard: now,
            pinged: None,
            pings: 0,
        }
    }

    /// Time never goes backwards in here, whatever the caller's clock does.
    pub(crate) fn tick(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// The last moment that was told.
    pub(crate) fn now(&self) -> Time {
        self.now
    }

    pub(crate) fn heard(&mut self, now: Time) {
        self.tick(now);
        self.last_heard = self.now;
        self.pinged = None;
    }

    pub(crate) fn connected(&mut self) {
        self.handshake_deadline = None;
    }

    pub(crate) fn next(&self, config: &Config) -> Time {
        match (self.handshake_deadline, self.pinged) {
            (Some(deadline), _) => deadline,
            (None, None) => self.last_heard + config.ping_after,
            (None, Some(pinged)) => pinged + config.silence_limit.saturating_sub(config.ping_after),
        }
    }

    /// Silence is counted from the ping on: a process that was stopped for an hour asks before it gives up.
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
