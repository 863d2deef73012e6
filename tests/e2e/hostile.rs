//! Peers that do not speak the protocol: the server closes their connections and serves others.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use blobferry_protocol::{Hello, Limits, MAGIC, Message, wire};

use super::support::{Home, MAX_MEMORY};

/// Sends bytes and waits until the server closes the connection.
fn is_disconnected(home: &Home, bytes: &[u8]) {
    let mut socket = TcpStream::connect(&home.server.address).unwrap();
    // The server may close the connection before everything is written.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Ok(_) => assert!(answer.len() < 100, "{answer:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

fn hello() -> Vec<u8> {
    let (limits, credentials) = (Limits::default(), Vec::new());
    let hello = Hello { magic: MAGIC, version_min: 1, version_max: 1, limits, credentials };
    let mut frame = Vec::new();
    wire::encode(&Message::Hello(hello), u32::MAX, &mut frame).unwrap();
    frame
}

#[test]
fn invalid_peers_are_disconnected_and_others_served() {
    let home = Home::new();
    let silent = TcpStream::connect(&home.server.address).unwrap();
    let mut half = TcpStream::connect(&home.server.address).unwrap();
    half.write_all(&hello()[..10]).unwrap();
    let mut wrong_magic = hello();
    wrong_magic[5..13].copy_from_slice(b"HTTP/1.1");
    let nonsense = [&hello()[..], &[5, 0, 0, 0, 0xff, 1, 2, 3, 4]].concat();
    let twice = [hello(), hello()].concat();
    let huge = [&hello()[..], &u32::MAX.to_le_bytes(), &[3; 1000]].concat();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"[..],
        &[0xff; 100_000],
        &u32::MAX.to_le_bytes(),
        &4097_u32.to_le_bytes(),
        &wrong_magic,
        &nonsense,
        &twice,
        &huge,
    ] {
        is_disconnected(&home, bytes);
        assert_eq!(home.ls("/"), [""; 0]);
    }
    home.put(&[&home.file("file", "x")]);
    drop((silent, half));
    assert_eq!(home.run(&["cat", "file"]).ok(), "x");
    assert!(home.server.peak_memory() < MAX_MEMORY);
}
