//! Connections that say nothing: thousands of them cost little, and keep nobody from being served.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::{Ran, Serve, blobferry};

/// Connections that say nothing; fewer where the system does not let a process have so many.
const IDLE: u64 = 5000;
/// Bytes of resident memory that each of them may cost a server.
const EACH: u64 = 8 << 10;

/// A client's hello, as PROTOCOL.md shows it.
const HELLO: &str =
    "2800000000626c6f6266657279010180808008808010808080018080800280088020800280808010036b6579";

fn hello() -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&HELLO[at..at + 2], 16).unwrap();
    (0..HELLO.len()).step_by(2).map(byte).collect()
}

/// Connects, and says no more than hello.
fn connect(server: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.write_all(&hello()).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut welcome = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut welcome).unwrap();
    assert_eq!(welcome[0], 1, "a welcome");
    stream
}

fn thousands_of_idle_connections_cost_little(transport: &str) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    // Other tests of this process have files open, too.
    let idle = limit.maximum.map_or(IDLE, |most| IDLE.min(most.saturating_sub(1000)));
    assert!(idle >= 1000, "this process may have {limit:?} files open: too few to tell");

    let dir = tempfile::tempdir().unwrap();
    let server = Serve::start_with(&dir.path().join("server"), &["--transport", transport]);
    let cache = dir.path().join("cache");
    let counter = |name: &str| {
        let mut status =
            blobferry(&["status", "--json", "--transport", transport, "--server", &server.address]);
        let stdout = Ran::from(status.arg("--cache").arg(&cache).output().unwrap()).ok();
        let status: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        status[name].as_u64().unwrap()
    };
    let before = counter("rss_bytes");
    let connections: Vec<TcpStream> = (0..idle).map(|_| connect(&server.address)).collect();
    let (after, connected) = (counter("rss_bytes"), counter("connections"));
    assert_eq!(connected, idle + 1, "they and the one who asks");
    let each = after.saturating_sub(before) / idle;
    println!("{transport}: {idle} idle connections, {each} bytes of resident memory each");
    assert!(each <= EACH, "{each} bytes each");
    drop(connections);
}

#[test]
fn thousands_of_idle_connections_cost_a_server_on_mio_little() {
    thousands_of_idle_connections_cost_little("mio");
}

#[test]
fn thousands_of_idle_connections_cost_a_server_on_tokio_little() {
    thousands_of_idle_connections_cost_little("tokio");
}
