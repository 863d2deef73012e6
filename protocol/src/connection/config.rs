//! The settings of one connection: the limits of this side, and its timeouts.

use core::time::Duration;

use crate::limits::Limits;

/// The settings of one connection.
///
/// The default has [`Limits::default`] and the timeouts that each field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// What this side accepts. The connection announces it to the peer. Default:
    /// [`Limits::default`].
    pub limits: Limits,
    /// How long the handshake may take, counted from the creation of the connection. Default: 10 s.
    pub handshake_timeout: Duration,
    /// The time without any bytes from the peer after which the connection sends a ping. Default:
    /// 20 s.
    pub ping_after: Duration,
    /// The time without any bytes from the peer after which the connection is dead. It must be
    /// longer than `ping_after`: the ping has the difference for its answer. Default: 60 s.
    pub silence_limit: Duration,
    /// The time without progress after which the connection gives a transfer up, in either
    /// direction, with [`Deadline::Transfer`](crate::Deadline::Transfer).
    ///
    /// Progress is any byte of it that was sent, moved or stored. A slow transfer is no error as
    /// long as it moves. Transfers take turns, one chunk each, so this must be longer than one
    /// round of all of them on the slowest link. Default: 120 s.
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
