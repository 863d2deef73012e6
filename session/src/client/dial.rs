//! Whom to call, and when to call again: the addresses of a client's server, and its patience.

use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How a client gets over the loss of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// The pause after the first attempt that failed; each further one is twice as long. Every pause is shortened by
    /// up to a half, by chance, so that not all clients of a server come back at once.
    pub first: Duration,
    /// No pause is longer.
    pub longest: Duration,
    /// Calls wait so long for a connection, counted from the moment since when nothing was heard of the server; then they
    /// fail with [`CallError::Disconnected`](super::CallError::Disconnected), and so do all further ones until there is
    /// a connection again. Attempts go on nevertheless. Zero: calls fail at once when the connection is lost.
    pub patience: Duration,
}

impl Default for Reconnect {
    fn default() -> Reconnect {
        Reconnect {
            first: Duration::from_millis(50),
            longest: Duration::from_secs(5),
            patience: Duration::from_secs(30),
        }
    }
}

/// Where a server is found: one address or several, tried in turn. Each has the form `HOST:PORT`; a host's name is looked
/// up at every attempt.
///
/// ```
/// use crate::client::Addresses;
///
/// let one = Addresses::from("files.example:7420");
/// let two = Addresses::from("files.example:7420, other.example:7420");
/// assert_eq!(two, Addresses::from(vec!["files.example:7420", "other.example:7420"]));
/// assert_ne!(one, two);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Vec<String>);

impl Addresses {
    /// Nobody can be called: there will be one connection, and no other.
    #[must_use]
    pub fn none() -> Addresses {
        Addresses(Vec::new())
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Is there nobody to call?
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Addresses {
    /// One, or several with commas between them.
    fn from(text: &str) -> Addresses {
        Addresses(text.split(',').map(|address| address.trim().to_owned()).collect())
    }
}

impl From<String> for Addresses {
    fn from(text: String) -> Addresses {
        Addresses::from(text.as_str())
    }
}

impl From<&String> for Addresses {
    fn from(text: &String) -> Addresses {
        Addresses::from(text.as_str())
    }
}

impl From<SocketAddr> for Addresses {
    fn from(address: SocketAddr) -> Addresses {
        Addresses(vec![address.to_string()])
    }
}

impl<T: Display> From<Vec<T>> for Addresses {
    fn from(addresses: Vec<T>) -> Addresses {
        Addresses(addresses.iter().map(ToString::to_string).collect())
    }
}

impl<T: Display> From<&[T]> for Addresses {
    fn from(addresses: &[T]) -> Addresses {
        Addresses(addresses.iter().map(ToString::to_string).collect())
    }
}

/// What happens to a client's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// There is one, and the handshake is done.
    Connected {
        /// To whom.
        address: String,
    },
    /// It was lost. What was under way goes on as soon as there is another.
    Lost {
        /// To whom it was.
        address: String,
        /// Why.
        reason: String,
    },
    /// An attempt to have one again has failed.
    Failed {
        /// Who was called.
        address: String,
        /// Why.
        reason: String,
    },
    /// It took too long: calls fail from here on, until there is a connection again.
    OutOfPatience {
        /// Why the last attempt has failed.
        reason: String,
    },
}

/// The next attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Whom to call.
    pub address: String,
    /// How long to wait before that.
    pub pause: Duration,
}

/// Counts attempts.
#[derive(Debug)]
pub(super) struct Dialer {
    addresses: Addresses,
    reconnect: Reconnect,
    /// The address that is called, or is to be called next.
    place: usize,
    /// Attempts that have come to nothing since anything was heard of the server.
    failed: u32,
    /// Since when nothing was.
    since: Option<Instant>,
}

impl Dialer {
    pub(super) fn new(addresses: Addresses, reconnect: Reconnect) -> Dialer {
        Dialer { addresses, reconnect, place: 0, failed: 0, since: None }
    }

    /// Can anybody be called at all?
    pub(super) fn can_call(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// The address that is called now.
    pub(super) fn address(&self) -> String {
        self.addresses.0.get(self.place).cloned().unwrap_or_default()
    }

    /// The first connection is to the address at this place.
    pub(super) fn start_at(&mut self, place: usize) {
        self.place = place;
    }

    /// The server has answered something: whatever was wrong is over.
    pub(super) fn heard(&mut self) {
        (self.failed, self.since) = (0, None);
    }

    /// A connection was lost or has not come about; whether patience is at its end. One that was `connected` is tried
    /// again first.
    pub(super) fn lost(&mut self, now: Instant, connected: bool) -> bool {
        if !connected {
            self.place = (self.place + 1) % self.addresses.0.len().max(1);
        }
        self.failed = self.failed.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(since) >= self.reconnect.patience
    }

    /// The next attempt. `chance` is any number.
    pub(super) fn next(&self, chance: u32) -> Dial {
        Dial { address: self.address(), pause: self.pause(chance) }
    }

    /// None before each address was tried; then longer and longer, between the halves and the wholes of the steps.
    fn pause(&self, chance: u32) -> Duration {
        let each = u32::try_from(self.addresses.0.len()).unwrap_or(u32::MAX).max(1);
        if self.failed <= each {
            return Duration::ZERO;
        }
        let step = (self.failed - each - 1) / each;
        let whole = self.reconnect.first.saturating_mul(1 << step.min(20)).min(self.reconnect.longest);
        whole.mul_f64(0.5 + 0.5 * f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer(addresses: &str) -> Dialer {
        Dialer::new(addresses.into(), Reconnect::default())
    }

    #[test]
    fn the_first_attempt_is_made_at_once_and_the_next_ones_later_and_later_up_to_a_limit() {
        let mut dialer = dialer("a:1");
        let now = Instant::now();
        dialer.lost(now, true);
        assert_eq!(dialer.next(0).pause, Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..20 {
            dialer.lost(now, false);
            let (least, most) = (dialer.next(0).pause, dialer.next(u32::MAX).pause);
            assert_eq!(least * 2, most);
            pauses.push(most);
        }
        assert_eq!(pauses[0], Duration::from_millis(50));
        assert_eq!(pauses[1], Duration::from_millis(100));
        assert!(pauses.is_sorted());
        assert_eq!(pauses[19], Duration::from_secs(5));
        dialer.heard();
        dialer.lost(now, true);
        assert_eq!(dialer.next(0).pause, Duration::ZERO);
    }

    #[test]
    fn who_was_connected_is_called_first_and_then_all_in_turn_before_there_is_a_pause() {
        let mut dialer = dialer("a:1,b:1,c:1");
        dialer.start_at(1);
        let now = Instant::now();
        let mut called = Vec::new();
        let mut connected = true;
        for _ in 0..3 {
            dialer.lost(now, std::mem::take(&mut connected));
            let Dial { address, pause } = dialer.next(0);
            assert_eq!(pause, Duration::ZERO);
            called.push(address);
        }
        assert_eq!(called, ["b:1", "c:1", "a:1"]);
        dialer.lost(now, false);
        assert!(dialer.next(0).pause > Duration::ZERO);
    }

    #[test]
    fn patience_is_counted_from_when_the_server_was_last_heard() {
        let mut dialer = dialer("a:1");
        let start = Instant::now();
        let patience = Reconnect::default().patience;
        assert!(!dialer.lost(start, true));
        assert!(!dialer.lost(start + patience / 2, false));
        dialer.heard();
        assert!(!dialer.lost(start + patience, true));
        assert!(dialer.lost(start + patience * 2, false));
    }

    #[test]
    fn without_patience_the_first_loss_is_enough() {
        let reconnect = Reconnect { patience: Duration::ZERO, ..Reconnect::default() };
        assert!(Dialer::new("a:1".into(), reconnect).lost(Instant::now(), true));
    }
}
