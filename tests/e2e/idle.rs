//! Thousands of idle connections cost a server little memory, and other clients are still served.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::{Ran, Serve, blobferry};

/// Number of idle connections; fewer if the limit on open files is lower.
const IDLE: u64 = 5000;
/// Resident memory that one idle connection may cost a server, in bytes.
const MAX_BYTES_EACH: u64 = 8 << 10;

/// A client's hello frame from PROTOCOL.md, in hexadecimal.
const HELLO: &str =
    "2800000000626c6f6266657279010180808008808010808080018080800280088020800280808010036b6579";

fn hello() -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&HELLO[at..at + 2], 16).unwrap();
    (0..HELLO.len()).step_by(2).map(byte).collect()
}

/// Connects, completes the handshake, and sends nothing more.
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

fn idle_connections_stay_within_memory_budget(transport: &str) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    // Other tests of this process also have open files.
    let idle = limit.maximum.map_or(IDLE, |most| IDLE.min(most.saturating_sub(1000)));
    assert!(idle >= 1000, "the limit on open files is too low for this test: {limit:?}");

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
    assert_eq!(connected, idle + 1, "they and the client that runs `status`");
    let each = after.saturating_sub(before) / idle;
    println!("{transport}: {idle} idle connections, {each} bytes of resident memory each");
    assert!(each <= MAX_BYTES_EACH, "{each} bytes each");
    drop(connections);
}

#[test]
fn idle_connections_on_mio_stay_within_memory_budget() {
    idle_connections_stay_within_memory_budget("mio");
}

#[test]
fn idle_connections_on_tokio_stay_within_memory_budget() {
    idle_connections_stay_within_memory_budget("tokio");
}
