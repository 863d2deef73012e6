//! The addresses of a server, and when to connect to which of them.

use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A client's reconnection policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// The pause after the first failed attempt; each further pause is twice as long. Every pause is shortened at random
    /// by up to a half, so that the clients of a server do not come back all at once. Default: 50 ms.
    pub first: Duration,
    /// The longest pause between two attempts. Default: 5 s.
    pub longest: Duration,
    /// How long calls wait for a connection, counted from the loss of the last one that made progress. Then they fail
    /// with [`CallError::Disconnected`](super::CallError::Disconnected), and so do further calls until there is a
    /// connection again. Attempts to reconnect go on. With zero, calls fail as soon as the connection is lost.
    /// Default: 30 s.
    pub unreachable_timeout: Duration,
}

impl Default for Reconnect {
    fn default() -> Reconnect {
        Reconnect {
            first: Duration::from_millis(50),
            longest: Duration::from_secs(5),
            unreachable_timeout: Duration::from_secs(30),
        }
    }
}

/// The addresses of a server, tried in turn. Each has the form `HOST:PORT`; a host name is resolved at every attempt.
///
/// ```
/// use blobferry_session::client::Addresses;
///
/// let one = Addresses::from("files.example:7420");
/// let two = Addresses::from("files.example:7420, other.example:7420");
/// assert_eq!(two, Addresses::from(vec!["files.example:7420", "other.example:7420"]));
/// assert_ne!(one, two);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Vec<String>);

impl Addresses {
    /// Returns no addresses. The session uses the connection it is given and never reconnects.
    #[must_use]
    pub fn none() -> Addresses {
        Addresses(Vec::new())
    }

    /// Returns the addresses, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Returns whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Addresses {
    /// Parses one address, or several separated by commas.
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

/// The next attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// The address to connect to.
    pub address: String,
    /// How long to wait before the attempt.
    pub pause: Duration,
}

/// Chooses the next address and pause, from the attempts that have failed.
#[derive(Debug)]
pub(super) struct Dialer {
    addresses: Addresses,
    reconnect: Reconnect,
    /// The index of the address that is in use, or is tried next.
    place: usize,
    /// The number of failed attempts since the server last answered.
    failed: u32,
    /// When the connection was lost, if the server has not answered since.
    since: Option<Instant>,
}

impl Dialer {
    pub(super) fn new(addresses: Addresses, reconnect: Reconnect) -> Dialer {
        Dialer { addresses, reconnect, place: 0, failed: 0, since: None }
    }

    /// Returns whether there is any address.
    pub(super) fn can_call(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// Returns the address that is in use, or is tried next.
    pub(super) fn address(&self) -> String {
        self.addresses.0.get(self.place).cloned().unwrap_or_default()
    }

    /// Makes the address at this index the first.
    pub(super) fn start_at(&mut self, place: usize) {
        self.place = place;
    }

    /// Notes that the server has answered.
    pub(super) fn answered(&mut self) {
        (self.failed, self.since) = (0, None);
    }

    /// Notes a lost connection, or a failed attempt. Returns whether the server counts as unreachable. An address that
    /// was `connected` is tried again first; otherwise the next one is.
    pub(super) fn lost(&mut self, now: Instant, connected: bool) -> bool {
        if !connected {
            self.place = (self.place + 1) % self.addresses.0.len().max(1);
        }
        self.failed = self.failed.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(since) >= self.reconnect.unreachable_timeout
    }

    /// Returns the next attempt. `chance` is a random number.
    pub(super) fn next(&self, chance: u32) -> Dial {
        Dial { address: self.address(), pause: self.pause(chance) }
    }

    /// Returns the pause before the next attempt: none until each address was tried once, then exponential backoff
    /// with jitter.
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
    fn first_attempt_is_immediate_then_pauses_double_to_a_limit() {
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
        dialer.answered();
        dialer.lost(now, true);
        assert_eq!(dialer.next(0).pause, Duration::ZERO);
    }

    #[test]
    fn connected_address_is_tried_first_then_all_without_a_pause() {
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
    fn unreachable_timeout_starts_after_the_last_answer() {
        let mut dialer = dialer("a:1");
        let start = Instant::now();
        let timeout = Reconnect::default().unreachable_timeout;
        assert!(!dialer.lost(start, true));
        assert!(!dialer.lost(start + timeout / 2, false));
        dialer.answered();
        assert!(!dialer.lost(start + timeout, true));
        assert!(dialer.lost(start + timeout * 2, false));
    }

    #[test]
    fn zero_unreachable_timeout_expires_at_the_first_loss() {
        let reconnect = Reconnect { unreachable_timeout: Duration::ZERO, ..Reconnect::default() };
        assert!(Dialer::new("a:1".into(), reconnect).lost(Instant::now(), true));
    }
}
