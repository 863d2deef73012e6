//! The configuration of a client.

use blobferry_protocol::Config;

use crate::client::dial::Reconnect;

/// How a client behaves, on any transport.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Limits and timeouts of each connection. Default: [`Config::default`].
    pub connection: Config,
    /// Bytes that identify the client to the server, at most 2,048. Default: none. Servers check nothing today.
    pub credentials: Vec<u8>,
    /// Reconnection policy. Default: [`Reconnect::default`]. With `None` the session ends with its first
    /// connection, and pending calls fail.
    pub reconnect: Option<Reconnect>,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        let (connection, credentials) = (Config::default(), Vec::new());
        ClientConfig { connection, credentials, reconnect: Some(Reconnect::default()) }
    }
}
