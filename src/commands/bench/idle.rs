//! Idle connections: the server's memory for each connection after its handshake.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use blobferry_protocol::wire::LENGTH_BYTES;
use blobferry_protocol::{Config, Time, client};
use rustix::process::{Resource, getrlimit};

use super::Bench;
use super::report::{Target, Unit};
use crate::commands::raise_descriptor_limit;
use crate::memory::resident_of;

/// The descriptors that this process needs for other purposes.
const OTHERS: u64 = 64;

/// Measures the section.
pub(super) fn run(bench: &mut Bench) -> io::Result<()> {
    if bench.server.is_some() {
        bench.leave_out("idle", "the server's process is not of our own");
        return Ok(());
    }
    raise_descriptor_limit();
    let wanted = bench.plan.connections;
    let most = getrlimit(Resource::Nofile).current.map_or(wanted, |most| most.saturating_sub(OTHERS));
    let count = wanted.min(most);
    if count < wanted {
        let why = format!("a process may have no more than {count} of them on this system");
        bench.leave_out(&format!("{wanted} idle connections"), &why);
    }
    let what = format!("resident memory of a server for each of {count} idle connections");
    let row = bench.row("idle-connection", &what, Unit::Bytes, Some(Target::AtMost(4096.0)));
    let hello = hello();
    for round in 0..bench.plan.rounds {
        for transport in bench.transports(round) {
            bench.environment.doing(format!("{count} connections, {}", transport.name()))?;
            let dir = bench.new_dir()?;
            let server = bench.serve(transport, dir.path())?;
            let resident = || server.process().and_then(resident_of).unwrap_or_default();
            // The first connection lets the server allocate what all connections share.
            let first = connect(&server.address, &hello)?;
            let before = resident();
            let connections =
                (1..count).map(|_| connect(&server.address, &hello)).collect::<io::Result<Vec<_>>>()?;
            let each = resident().saturating_sub(before) as f64 / connections.len() as f64;
            bench.report.value(row, Some(transport), each);
            drop((first, connections));
            server.stop()?;
        }
    }
    Ok(())
}

/// Returns a client's first bytes.
fn hello() -> Vec<u8> {
    let mut connection = client::Connection::new(Time::ZERO, Config::default(), b"");
    let mut bytes = Vec::new();
    while connection.poll_transmit(Time::ZERO, &mut bytes).is_some() {}
    bytes
}

/// Connects, sends `hello`, and reads the answer.
fn connect(server: &str, hello: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(hello)?;
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length)?;
    stream.read_exact(&mut vec![0; u32::from_le_bytes(length) as usize])?;
    Ok(stream)
}
