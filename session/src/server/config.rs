//! The configuration of a server.

use std::time::Duration;

use blobferry_protocol::Config;

/// How a server behaves, on any transport.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Limits and timeouts of each connection. Default: [`Config::default`].
    pub connection: Config,
    /// Connections at once; further ones are refused. Default: 16,384.
    pub connections: u64,
    /// Threads of the pool for blocking work, at most. Default: 16.
    pub workers: usize,
    /// How long a graceful stop waits until voted transactions are finished or aborted and answers are sent. Then
    /// connections are closed as they are, and their transactions aborted. Default: 5 s.
    pub grace: Duration,
    /// How long an open transaction whose connection was lost waits for its client, with what has arrived of its blobs.
    /// A transaction that was voted for is aborted at once, since it holds locks. Default: 60 s.
    pub detach_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            connection: Config::default(),
            connections: 16_384,
            workers: 16,
            grace: Duration::from_secs(5),
            detach_timeout: Duration::from_secs(60),
        }
    }
}
