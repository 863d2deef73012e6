//! The settings of one connection: the limits of this side, and its timeouts.

use core::time::Duration;

use crate::limits::Limits;

/// How a connection behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What this side can take; announced to the peer.
    pub limits: Limits,
    /// How long the handshake may take from the first call on.
    pub handshake_timeout: Duration,
    /// After so long without hearing anything a ping is sent.
    pub ping_after: Duration,
    /// After so long without hearing anything the connection is dead. More than `ping_after`.
    pub silence_limit: Duration,
    /// A transfer, in either direction, of which no byte was sent, moved or stored for so long is given up with
    /// [`Deadline::Transfer`](crate::Deadline::Transfer). Slow is fine as long as it moves: transfers take turns, so
    /// this must be more than a round of all of them takes on the slowest link, a chunk of each.
    pub transfer_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            limits: Limits::default(),
            handshake_timeout: Duration::from_secs(10),
            ping_after: Duration::from_secs(20),
            silence_limit: Duration::from_secs(60),
            transfer_timeout: Duration::from_secs(120),
        }
    }
}
