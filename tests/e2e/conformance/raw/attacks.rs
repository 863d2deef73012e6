//! Attacks of hostile clients. A test repeats each until [`Target::over`] is set.
//!
//! The attackers do not close their connections properly, and few of them read.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::client::Client;
use super::decode::{Answer, Received, read_message};
use super::encode::{Body, Limits, Txn, error, message, request};
use super::with_timeouts;
use crate::support::bytes;

/// The server under attack and some of its data.
pub(super) struct Target {
    pub(super) address: String,
    /// A stored blob: oid and tid.
    pub(super) blob: (u64, u64),
    /// An object with a record of 100,000 bytes.
    pub(super) oid: u64,
    /// Set when the attack must end.
    pub(super) over: AtomicBool,
}

/// Number of transaction ids that attackers have used.
static TXNS: AtomicU64 = AtomicU64::new(0);

impl Target {
    pub(super) fn new(address: &str, blob: (u64, u64), oid: u64) -> Target {
        Target { address: address.to_owned(), blob, oid, over: AtomicBool::new(false) }
    }

    /// Returns whether the attack must end.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Returns an unused transaction id.
    fn txn(&self) -> Txn {
        let number = TXNS.fetch_add(1, Ordering::SeqCst);
        let mut txn = [0xbd; 16];
        txn[..8].copy_from_slice(&number.to_le_bytes());
        txn
    }

    /// Connects without a handshake.
    fn connect(&self) -> Peer<'_> {
        Peer::new(with_timeouts(TcpStream::connect(&self.address).unwrap()), self)
    }

    /// Connects with a handshake, grants unlimited credit, and reads nothing more.
    fn non_reading(&self) -> Peer<'_> {
        let mut stream = with_timeouts(TcpStream::connect(&self.address).unwrap());
        let generous = Limits { transfer_window: 1 << 40, connection_window: 1 << 40, ..Limits::DEFAULT };
        stream.write_all(&Body::hello(1, 1, generous, b"").frame()).unwrap();
        assert!(matches!(read_message(&mut stream), Ok(Some(Received::Welcome { .. }))));
        Peer::new(stream, self)
    }
}

/// A connection of an attacker.
struct Peer<'a> {
    stream: TcpStream,
    target: &'a Target,
}

impl Peer<'_> {
    /// Sets a short timeout, so that blocked reads and writes can check whether the attack must
    /// end.
    fn new(stream: TcpStream, target: &Target) -> Peer<'_> {
        let soon = Some(Duration::from_millis(5));
        stream.set_read_timeout(soon).unwrap();
        stream.set_write_timeout(soon).unwrap();
        Peer { stream, target }
    }

    /// Writes bytes until the server has accepted them or closes the connection, or the attack
    /// ends.
    fn flood(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match (&self.stream).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.target.is_over() => {}
                Err(_) => return,
            }
        }
    }

    /// Reads and writes nothing until the attack ends.
    fn linger(&self) {
        while !self.target.is_over() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until the server closes the connection or the attack ends.
    fn wait_for_close(&self) {
        let mut buffer = [0; 4096];
        loop {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.target.is_over() => {}
                Err(_) => return,
            }
        }
    }
}

/// Waits until the server has processed everything that was sent.
fn wait_until_processed(client: &mut Client) {
    client.send(Body::new(message::PING).int(1));
    while !matches!(client.receive(), Received::Pong { .. }) {}
}

/// Sends as many pings as allowed, then too many.
pub(super) fn pings(target: &Target) {
    let ping = Body::new(message::PING).int(1).frame();
    let mut client = Client::new(&target.address);
    for _ in 0..100 {
        client.write(&ping.repeat(63));
        (0..63).for_each(|_| while !matches!(client.receive(), Received::Pong { .. }) {});
    }
    let peer = target.non_reading();
    peer.flood(&ping.repeat(100_000));
    peer.wait_for_close();
}

/// Cancels unknown requests, answered requests, and pending requests twice.
pub(super) fn cancels(target: &Target) {
    let mut client = Client::new(&target.address);
    client.call(request::load(target.oid)).unwrap();
    for id in [1, 1 << 40] {
        client.write(&Body::new(message::CANCEL).int(id).frame().repeat(50_000));
    }
    wait_until_processed(&mut client);
    let peer = target.non_reading();
    let cancelled = |id| {
        let load = Body::numbered(id, &request::load(target.oid)).frame();
        [load, Body::new(message::CANCEL).int(id).frame().repeat(2)].concat()
    };
    peer.flood(&(1..=3000).flat_map(cancelled).collect::<Vec<u8>>());
}

/// Begins more transactions than allowed.
pub(super) fn begins(target: &Target) {
    let mut client = Client::new(&target.address);
    let asked: Vec<u64> =
        (0..400).map(|_| client.submit(request::begin(target.txn(), b"attacker", b"attack"))).collect();
    let answers = asked.into_iter().map(|id| client.answer(id));
    let refused: Vec<_> = answers.filter_map(Result::err).collect();
    assert_eq!(refused.len(), 400 - 256);
    assert!(refused.iter().all(|refused| refused.number == error::LIMIT));
}

/// Begins too many transactions and stores into unknown ones, without reading the answers.
pub(super) fn unread_answers(target: &Target) {
    let peer = target.non_reading();
    let ask = |id| {
        let request = if id % 2 == 0 {
            request::begin(target.txn(), b"", b"")
        } else {
            request::store([0xbe; 16], 1, 0, b"")
        };
        Body::numbered(id, &request).frame()
    };
    for thousands in 0..200 {
        peer.flood(&(1..=1000).flat_map(|n| ask(thousands * 1000 + n)).collect::<Vec<u8>>());
    }
    peer.linger();
}

/// Requests many downloads with unlimited credit and reads none of them.
pub(super) fn unread_downloads(target: &Target) {
    let peer = target.non_reading();
    let ask = |id| match id % 4 {
        0 => Body::numbered(id, &request::send_blob(target.blob.0, target.blob.1, 0, u64::MAX)).frame(),
        _ => Body::numbered(id, &request::load(target.oid)).frame(),
    };
    peer.flood(&(1..=2000).flat_map(ask).collect::<Vec<u8>>());
    peer.linger();
}

/// Uploads single-byte chunks; the first ones also in single-byte writes.
pub(super) fn uploads_byte_by_byte(target: &Target) {
    let mut client = Client::new(&target.address);
    let txn = target.txn();
    client.done(request::begin(txn, b"", b""));
    let transfer = client.start_upload(txn, 1 << 41, 0, 1_000_000);
    let byte = |offset| [Body::blob_chunk(transfer, offset, 1).frame(), vec![7]].concat();
    (0..200).for_each(|offset| byte(offset).chunks(1).for_each(|piece| client.write(piece)));
    client.write(&(200..20_000).flat_map(byte).collect::<Vec<u8>>());
    wait_until_processed(&mut client);
}

/// Announces uploads without sending them, and one that is larger than any disk.
pub(super) fn missing_uploads(target: &Target) {
    let mut client = Client::new(&target.address);
    let txn = target.txn();
    client.done(request::begin(txn, b"", b""));
    for oid in 0..20 {
        client.start_upload(txn, (1 << 41) + oid, 0, 100_000);
    }
    let absurd = client.start_upload(txn, 1 << 42, 0, 1 << 60);
    client.answer(absurd).unwrap_err();
    // One upload sends only the first half of a chunk.
    client.send(Body::blob_chunk(1 + 1, 0, 100_000));
    client.write(&[0; 50_000]);
}

/// Announces frames of 4 GiB before and after the hello, and chunks of 4 GiB.
pub(super) fn lengths_of_4_gib(target: &Target) {
    let length = u32::MAX.to_le_bytes();
    let chunk = Body::blob_chunk(1, 0, u32::MAX.into()).frame();
    let lies: [&[&[u8]]; 4] = [
        &[&length],
        &[&Body::default_hello().frame(), &length],
        &[&Body::default_hello().frame(), &length, &[message::REQUEST], &[0; 1000]],
        &[&Body::default_hello().frame(), &chunk, &[0; 100_000]],
    ];
    for lie in lies {
        let peer = target.connect();
        peer.flood(&lie.concat());
        peer.wait_for_close();
    }
}

/// Sends a part of a frame of the maximum length.
pub(super) fn unfinished_long_frames(target: &Target) {
    let peer = target.non_reading();
    let length = (16_u32 << 20).to_le_bytes();
    peer.flood(&[&length[..], &[message::REQUEST], &[0; 1_000_000]].concat());
    peer.linger();
}

/// Sends random bytes.
pub(super) fn garbage(target: &Target) {
    for n in 0..10 {
        let (peer, noise) = (target.connect(), bytes(&format!("noise {n}"), 100_000));
        let hello = if n % 2 == 0 { Body::default_hello().frame() } else { Vec::new() };
        // A valid length, so that the server decodes the rest.
        peer.flood(&[&hello[..], &[200, 0, 0, 0], &noise].concat());
        peer.wait_for_close();
    }
}

/// Opens hundreds of connections that send nothing, half a hello, or only a hello.
pub(super) fn silent_crowd(target: &Target) {
    let crowd: Vec<Peer<'_>> = (0..300)
        .map(|n| {
            let peer = target.connect();
            peer.flood(&Body::default_hello().frame()[..[0, 10, Body::default_hello().frame().len()][n % 3]]);
            peer
        })
        .collect();
    crowd[0].linger();
}

/// Disconnects as soon as a download starts, repeatedly.
pub(super) fn disconnects_mid_download(target: &Target) {
    for _ in 0..50 {
        let peer = target.non_reading();
        peer.flood(
            &Body::numbered(1, &request::send_blob(target.blob.0, target.blob.1, 0, u64::MAX)).frame(),
        );
        let mut reader = BufReader::new(&peer.stream);
        while !target.is_over() {
            match read_message(&mut reader) {
                Ok(Some(Received::BlobStart { .. }) | None) => break,
                Ok(Some(_)) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
}

/// Queries outcomes of unknown transactions, and requests oids and history with huge counts.
pub(super) fn queries(target: &Target) {
    let mut client = Client::new(&target.address);
    for _ in 0..20 {
        let never = client.submit(request::outcome(target.txn()));
        let attached = client.submit(request::attach(target.txn()));
        let oids = client.submit(request::new_oids(u32::MAX.into()));
        let history = client.submit(request::history(target.oid, u32::MAX.into()));
        assert_eq!(client.answer(never), Ok(Answer::Outcome(None)));
        assert_eq!(client.answer(attached).unwrap_err().number, error::NO_SUCH_TRANSACTION);
        assert!(matches!(client.answer(oids), Ok(Answer::Oids { count: 1..100_000, .. })));
        assert!(matches!(client.answer(history), Ok(Answer::History(_))));
    }
}
