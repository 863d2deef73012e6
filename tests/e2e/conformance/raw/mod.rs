//! Peers over plain sockets, written from PROTOCOL.md alone: [`encode`], [`decode`], [`client`] and [`server`] use nothing of the
//! project, so that what they and it agree on is what the specification says.

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

/// A TCP connection on which a test that would wait for ever fails.
fn patient(stream: std::net::TcpStream) -> std::net::TcpStream {
    let for_ever = Some(std::time::Duration::from_secs(120));
    stream.set_read_timeout(for_ever).unwrap();
    stream.set_write_timeout(for_ever).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}
