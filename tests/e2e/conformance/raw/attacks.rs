//! What hostile clients do, each on and on until it is told that it is over. None of them is polite enough to leave in
//! good order, and few of them read.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::client::Client;
use super::decode::{Answer, Received, read_message};
use super::encode::{Body, Limits, Txn, error, message, request};
use super::patient;
use crate::support::bytes;

/// What attackers know.
pub(super) struct Target {
    pub(super) address: String,
    /// A blob that is on the server: oid and tid.
    pub(super) blob: (u64, u64),
    /// A record of 100,000 bytes that is there.
    pub(super) oid: u64,
    /// The attack is over.
    pub(super) over: AtomicBool,
}

/// Transactions that attackers have thought of.
static TXNS: AtomicU64 = AtomicU64::new(0);

impl Target {
    pub(super) fn new(address: &str, blob: (u64, u64), oid: u64) -> Target {
        Target { address: address.to_owned(), blob, oid, over: AtomicBool::new(false) }
    }

    /// Has everybody stop.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The name of a transaction that nobody has used.
    fn txn(&self) -> Txn {
        let number = TXNS.fetch_add(1, Ordering::SeqCst);
        let mut txn = [0xbd; 16];
        txn[..8].copy_from_slice(&number.to_le_bytes());
        txn
    }

    /// A connection on which nothing was said.
    fn connect(&self) -> Peer<'_> {
        Peer::new(patient(TcpStream::connect(&self.address).unwrap()), self)
    }

    /// One that has heard its welcome, has given all the credit that there is, and reads nothing more.
    fn deaf(&self) -> Peer<'_> {
        let mut stream = patient(TcpStream::connect(&self.address).unwrap());
        let generous = Limits { transfer_window: 1 << 40, connection_window: 1 << 40, ..Limits::DEFAULT };
        stream.write_all(&Body::hello(1, 1, generous, b"").frame()).unwrap();
        assert!(matches!(read_message(&mut stream), Ok(Some(Received::Welcome { .. }))));
        Peer::new(stream, self)
    }
}

/// A connection without manners.
struct Peer<'a> {
    stream: TcpStream,
    target: &'a Target,
}

impl Peer<'_> {
    /// Whoever waits on it looks up from time to time whether it is over.
    fn new(stream: TcpStream, target: &Target) -> Peer<'_> {
        let soon = Some(Duration::from_millis(5));
        stream.set_read_timeout(soon).unwrap();
        stream.set_write_timeout(soon).unwrap();
        Peer { stream, target }
    }

    /// Writes until the server has taken it all, or closes the connection, or it is over.
    fn pour(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match (&self.stream).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.target.is_over() => {}
                Err(_) => return,
            }
        }
    }

    /// Reads nothing and says nothing more, until it is over.
    fn linger(&self) {
        while !self.target.is_over() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until the server closes the connection, or it is over.
    fn is_sent_away(&self) {
        let mut heard = [0; 4096];
        loop {
            match (&self.stream).read(&mut heard) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.target.is_over() => {}
                Err(_) => return,
            }
        }
    }
}

/// Waits until the server has heard everything that was said to it.
fn is_processed(client: &mut Client) {
    client.send(Body::new(message::PING).int(1));
    while !matches!(client.receive(), Received::Pong { .. }) {}
}

/// As many pings as may be, and then more.
pub(super) fn pings(target: &Target) {
    let ping = Body::new(message::PING).int(1).frame();
    let mut client = Client::new(&target.address);
    for _ in 0..100 {
        client.write(&ping.repeat(63));
        (0..63).for_each(|_| while !matches!(client.receive(), Received::Pong { .. }) {});
    }
    let peer = target.deaf();
    peer.pour(&ping.repeat(100_000));
    peer.is_sent_away();
}

/// Cancels what was never asked for, what was answered, and again what is waited for.
pub(super) fn cancels(target: &Target) {
    let mut client = Client::new(&target.address);
    client.call(request::load(target.oid)).unwrap();
    for id in [1, 1 << 40] {
        client.write(&Body::new(message::CANCEL).int(id).frame().repeat(50_000));
    }
    is_processed(&mut client);
    let peer = target.deaf();
    let cancelled = |id| {
        let load = Body::numbered(id, &request::load(target.oid)).frame();
        [load, Body::new(message::CANCEL).int(id).frame().repeat(2)].concat()
    };
    peer.pour(&(1..=3000).flat_map(cancelled).collect::<Vec<u8>>());
}

/// Begins more transactions than may be open.
pub(super) fn begins(target: &Target) {
    let mut client = Client::new(&target.address);
    let asked: Vec<u64> =
        (0..400).map(|_| client.submit(request::begin(target.txn(), b"somebody", b"something"))).collect();
    let answers = asked.into_iter().map(|id| client.answer(id));
    let refused: Vec<_> = answers.filter_map(Result::err).collect();
    assert_eq!(refused.len(), 400 - 256);
    assert!(refused.iter().all(|refused| refused.number == error::LIMIT));
}

/// The same, and what no transaction is open for, without reading the answers.
pub(super) fn requests_whose_answers_are_not_read(target: &Target) {
    let peer = target.deaf();
    let ask = |id| {
        let request = if id % 2 == 0 {
            request::begin(target.txn(), b"", b"")
        } else {
            request::store([0xbe; 16], 1, 0, b"")
        };
        Body::numbered(id, &request).frame()
    };
    for thousands in 0..200 {
        peer.pour(&(1..=1000).flat_map(|n| ask(thousands * 1000 + n)).collect::<Vec<u8>>());
    }
    peer.linger();
}

/// Asks for much, with all the credit that there is, and reads nothing of it.
pub(super) fn downloads_that_are_not_read(target: &Target) {
    let peer = target.deaf();
    let ask = |id| match id % 4 {
        0 => Body::numbered(id, &request::send_blob(target.blob.0, target.blob.1, 0, u64::MAX)).frame(),
        _ => Body::numbered(id, &request::load(target.oid)).frame(),
    };
    peer.pour(&(1..=2000).flat_map(ask).collect::<Vec<u8>>());
    peer.linger();
}

/// Uploads a byte at a time, each in a chunk of its own, at first each in a packet of its own.
pub(super) fn uploads_byte_by_byte(target: &Target) {
    let mut client = Client::new(&target.address);
    let txn = target.txn();
    client.done(request::begin(txn, b"", b""));
    let transfer = client.start_upload(txn, 1 << 41, 0, 1_000_000);
    let byte = |offset| [Body::blob_chunk(transfer, offset, 1).frame(), vec![7]].concat();
    (0..200).for_each(|offset| byte(offset).chunks(1).for_each(|piece| client.write(piece)));
    client.write(&(200..20_000).flat_map(byte).collect::<Vec<u8>>());
    is_processed(&mut client);
}

/// Announces uploads that do not come, and one that no disk can take.
pub(super) fn uploads_that_do_not_come(target: &Target) {
    let mut client = Client::new(&target.address);
    let txn = target.txn();
    client.done(request::begin(txn, b"", b""));
    for oid in 0..20 {
        client.start_upload(txn, (1 << 41) + oid, 0, 100_000);
    }
    let absurd = client.start_upload(txn, 1 << 42, 0, 1 << 60);
    client.answer(absurd).unwrap_err();
    // Of one only the first half of a chunk comes.
    client.send(Body::blob_chunk(1 + 1, 0, 100_000));
    client.write(&[0; 50_000]);
}

/// Frames of 4 GiB, before a hello, after it, and in a message that may be long; chunks of 4 GiB.
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
        peer.pour(&lie.concat());
        peer.is_sent_away();
    }
}

/// A frame as long as may be, of which a part comes.
pub(super) fn long_frames_that_do_not_end(target: &Target) {
    let peer = target.deaf();
    let length = (16_u32 << 20).to_le_bytes();
    peer.pour(&[&length[..], &[message::REQUEST], &[0; 1_000_000]].concat());
    peer.linger();
}

/// Something else altogether.
pub(super) fn garbage(target: &Target) {
    for n in 0..10 {
        let (peer, noise) = (target.connect(), bytes(&format!("noise {n}"), 100_000));
        let said_hello = if n % 2 == 0 { Body::default_hello().frame() } else { Vec::new() };
        // A length that may be, so that the rest of it is looked at.
        peer.pour(&[&said_hello[..], &[200, 0, 0, 0], &noise].concat());
        peer.is_sent_away();
    }
}

/// Hundreds that say nothing, half a hello, or nothing but that.
pub(super) fn a_crowd_that_says_nothing(target: &Target) {
    let crowd: Vec<Peer<'_>> = (0..300)
        .map(|n| {
            let peer = target.connect();
            peer.pour(&Body::default_hello().frame()[..[0, 10, Body::default_hello().frame().len()][n % 3]]);
            peer
        })
        .collect();
    crowd[0].linger();
}

/// One that hears everything, and goes away in the middle of it, as many times as it can.
pub(super) fn callers_that_leave_at_once(target: &Target) {
    for _ in 0..50 {
        let peer = target.deaf();
        peer.pour(&Body::numbered(1, &request::send_blob(target.blob.0, target.blob.1, 0, u64::MAX)).frame());
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

/// Asks what has become of transactions that never were, and for numbers without end.
pub(super) fn questions(target: &Target) {
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
