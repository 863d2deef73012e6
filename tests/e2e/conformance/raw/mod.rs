//! Peers over plain sockets, written from PROTOCOL.md alone.
//!
//! [`encode`], [`decode`], [`client`] and [`server`] share no code with the project. If they work
//! together, the project follows the specification.

mod attacks;
mod client;
mod conversation;
mod credit;
mod decode;
mod encode;
mod flooding_servers;
mod floods;
mod frames;
mod hostile_clients;
mod hostile_servers;
mod refusals;
mod server;

use crate::support::TEST_TIMEOUT;

/// Sets timeouts on a TCP connection, so that a test fails instead of hanging.
fn with_timeouts(stream: std::net::TcpStream) -> std::net::TcpStream {
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}
