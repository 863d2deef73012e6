//! A client over a plain socket that keeps to the specification, and sees to it that the server does.

use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};

use super::decode::{Answer, Error, Received, read_message};
use super::encode::{Body, Digest, Limits, Txn, message, request};
use super::with_timeouts;

pub(super) struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    /// What this side can take, and what the server can.
    own: Limits,
    pub(super) limits: Limits,
    /// The last transaction, as the handshake told.
    pub(super) last_tid: u64,
    last_id: u64,
    /// Answers that came before somebody wanted them.
    answers: BTreeMap<u64, Result<Answer, Error>>,
    /// All that was told of commits: tid, and oids.
    pub(super) told: Vec<(u64, Vec<u64>)>,
    /// Credit for uploads, of each and of all together, and what was sent.
    credit: BTreeMap<u64, u64>,
    connection_credit: u64,
    sent: u64,
    /// The same for downloads: given, and received.
    given: BTreeMap<u64, u64>,
    connection_given: u64,
    received: u64,
}

/// A download that has come to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Downloaded {
    pub(super) from: u64,
    pub(super) size: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

impl Client {
    /// Connects, and shakes hands.
    pub(super) fn new(address: &str) -> Client {
        Client::with(address, Limits::DEFAULT)
    }

    /// The same, with other limits.
    pub(super) fn with(address: &str, own: Limits) -> Client {
        let mut client = Client::connect(address, own);
        client.send(Body::hello(1, 1, own, b""));
        match client.receive() {
            Received::Welcome { version: 1, limits, last_tid } => {
                client.last_tid = last_tid;
                client.connection_credit = limits.connection_window;
                client.limits = limits;
            }
            other => panic!("no welcome: {other:?}"),
        }
        client
    }

    /// Connects, and says nothing.
    pub(super) fn connect(address: &str, own: Limits) -> Client {
        let stream = with_timeouts(TcpStream::connect(address).unwrap());
        Client {
            reader: BufReader::new(stream.try_clone().unwrap()),
            stream,
            own,
            limits: own,
            last_tid: 0,
            last_id: 0,
            answers: BTreeMap::new(),
            told: Vec::new(),
            credit: BTreeMap::new(),
            connection_credit: 0,
            sent: 0,
            given: BTreeMap::new(),
            connection_given: own.connection_window,
            received: 0,
        }
    }

    pub(super) fn send(&mut self, body: Body) {
        self.write(&body.frame());
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(super) fn shut(&self, how: Shutdown) {
        self.stream.shutdown(how).unwrap();
    }

    /// Makes a request; its id.
    pub(super) fn submit(&mut self, request: Body) -> u64 {
        self.last_id += 1;
        self.send(Body::numbered(self.last_id, &request));
        self.last_id
    }

    /// The next message, after what it means for credit and pings was seen to.
    pub(super) fn receive(&mut self) -> Received {
        self.receive_or_end().expect("the server closed the connection")
    }

    fn receive_or_end(&mut self) -> Option<Received> {
        loop {
            let heard = match read_message(&mut self.reader) {
                Ok(heard) => heard?,
                // Closed in the middle of something, or with something left that the server did not read.
                Err(error)
                    if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
                {
                    return None;
                }
                Err(error) => panic!("{error}"),
            };
            match &heard {
                Received::Ping { nonce } => {
                    let pong = Body::new(message::PONG).int(*nonce);
                    self.send(pong);
                    continue;
                }
                Received::Invalidate { tid, oids } => self.told.push((*tid, oids.clone())),
                Received::Credit { transfer, upto } => {
                    let before = self.credit.insert(*transfer, *upto);
                    assert!(before.is_some_and(|before| before <= *upto), "{heard:?} after {before:?}");
                }
                Received::ConnectionCredit { upto } => {
                    assert!(*upto >= self.connection_credit, "{heard:?}");
                    self.connection_credit = *upto;
                }
                Received::BlobStart { transfer, from, .. } => {
                    self.given.insert(*transfer, from + self.own.transfer_window);
                }
                Received::BlobChunk { transfer, offset, payload } => {
                    let len = payload.len() as u64;
                    self.received += len;
                    assert!((1..=self.own.chunk).contains(&len), "a chunk of {len} bytes");
                    assert!(offset + len <= self.given[transfer], "beyond the credit");
                    assert!(self.received <= self.connection_given, "beyond the connection's credit");
                }
                _ => {}
            }
            return Some(heard);
        }
    }

    /// Hears until the server closes the connection, and closes it, too; what was said until then.
    pub(super) fn receive_to_the_end(&mut self) -> Vec<Received> {
        let heard = std::iter::from_fn(|| self.receive_or_end()).collect();
        // The server may not have waited for that.
        let _ = self.stream.shutdown(Shutdown::Both);
        heard
    }

    /// The answer to a request that is no download.
    pub(super) fn answer(&mut self, id: u64) -> Result<Answer, Error> {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
            match self.receive() {
                Received::Reply { id, result } => {
                    assert!(self.answers.insert(id, result).is_none(), "two answers to {id}");
                }
                Received::Invalidate { .. }
                | Received::Credit { .. }
                | Received::ConnectionCredit { .. }
                | Received::Goodbye => {}
                other => panic!("{other:?} while an answer is waited for"),
            }
        }
    }

    pub(super) fn call(&mut self, request: Body) -> Result<Answer, Error> {
        let id = self.submit(request);
        self.answer(id)
    }

    /// A request that succeeds with nothing to tell.
    #[track_caller]
    pub(super) fn done(&mut self, request: Body) {
        assert_eq!(self.call(request), Ok(Answer::Done));
    }

    /// A request that is refused; why.
    #[track_caller]
    pub(super) fn refused(&mut self, request: Body) -> Error {
        self.call(request).unwrap_err()
    }

    /// A vote and finish, or a commit, that succeeds; the tid.
    #[track_caller]
    pub(super) fn commit(&mut self, txn: Txn) -> u64 {
        match self.call(request::commit(txn)) {
            Ok(Answer::Finished(tid)) => tid,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn new_oid(&mut self) -> u64 {
        match self.call(request::new_oids(1)) {
            Ok(Answer::Oids { first, count: 1 }) => first,
            other => panic!("{other:?}"),
        }
    }

    /// One of the server's counters.
    pub(super) fn counter(&mut self, name: &str) -> u64 {
        let Ok(Answer::Status(counters)) = self.call(request::status()) else { panic!("no status") };
        counters.into_iter().find(|(counter, _)| counter == name).unwrap().1
    }

    /// Begins a transaction, and stores one record in it.
    pub(super) fn begin_and_store(&mut self, txn: Txn, oid: u64, base: u64, data: &[u8]) {
        self.done(request::begin(txn, b"", b""));
        self.done(request::store(txn, oid, base, data));
    }

    /// Commits one record; the tid.
    pub(super) fn put(&mut self, txn: Txn, oid: u64, base: u64, data: &[u8]) -> u64 {
        self.begin_and_store(txn, oid, base, data);
        self.commit(txn)
    }

    /// Commits one new blob; its oid and tid.
    pub(super) fn put_blob(&mut self, txn: Txn, bytes: &[u8]) -> (u64, u64) {
        let oid = self.new_oid();
        self.done(request::begin(txn, b"", b""));
        let stored = self.upload(txn, oid, 0, bytes);
        assert_eq!(self.answer(stored), Ok(Answer::Done));
        (oid, self.commit(txn))
    }

    /// Asks to store a blob; its transfer has the number that this gives, and begins with this.
    pub(super) fn start_upload(&mut self, txn: Txn, oid: u64, base: u64, size: u64) -> u64 {
        let transfer = self.submit(request::store_blob(txn, oid, base, b"record"));
        self.credit.insert(transfer, self.limits.transfer_window);
        self.send(Body::blob_start(transfer, 0, size, size));
        transfer
    }

    /// Sends a part of a blob as its credit allows, and hears of more where it does not.
    pub(super) fn send_payload(&mut self, transfer: u64, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (self.credit[&transfer] - offset).min(self.connection_credit - self.sent);
            let len = room.min(self.limits.chunk).min(bytes.len() as u64);
            if len == 0 {
                match self.receive() {
                    Received::Credit { .. }
                    | Received::ConnectionCredit { .. }
                    | Received::Invalidate { .. } => {}
                    other => panic!("{other:?} while credit is waited for"),
                }
                continue;
            }
            let (now, later) = bytes.split_at(len as usize);
            self.send(Body::blob_chunk(transfer, offset, len));
            self.write(now);
            self.sent += len;
            offset += len;
            bytes = later;
        }
    }

    /// Stores a whole blob; the id of the request, which is to be answered.
    pub(super) fn upload(&mut self, txn: Txn, oid: u64, base: u64, bytes: &[u8]) -> u64 {
        let transfer = self.start_upload(txn, oid, base, bytes.len() as u64);
        self.send_payload(transfer, 0, bytes);
        self.send(Body::blob_stop(transfer, digest(bytes)));
        transfer
    }

    /// Opens both windows of a download, whose bytes up to this offset are stored.
    pub(super) fn grant(&mut self, transfer: u64, offset: u64) {
        let upto = offset + self.own.transfer_window;
        self.given.insert(transfer, upto);
        self.send(Body::new(message::CREDIT).ints([transfer, upto]));
        self.grant_connection(self.received + self.own.connection_window);
    }

    /// Opens the window of the connection; it is never narrowed.
    pub(super) fn grant_connection(&mut self, upto: u64) {
        self.connection_given = self.connection_given.max(upto);
        self.send(Body::new(message::CONNECTION_CREDIT).int(self.connection_given));
    }

    /// All that was received is stored, or dropped.
    pub(super) fn grant_received(&mut self) {
        self.grant_connection(self.received + self.own.connection_window);
    }

    /// A part of a blob.
    pub(super) fn download(&mut self, blob: (u64, u64), from: u64, upto: u64) -> Result<Downloaded, Error> {
        let id = self.submit(request::send_blob(blob.0, blob.1, from, upto));
        let mut bytes = Vec::new();
        let (mut size, mut end) = (0, 0);
        loop {
            match self.receive() {
                Received::Reply { id: answered, result } if answered == id => return Err(result.unwrap_err()),
                Received::BlobStart { transfer, from: begins, end: ends, size: announced, .. } => {
                    (size, end) = (announced, ends);
                    assert_eq!((transfer, begins, ends), (id, from, upto.min(size)));
                }
                Received::BlobChunk { transfer, offset, payload } => {
                    assert_eq!((transfer, offset), (id, from + bytes.len() as u64));
                    bytes.extend(payload);
                    assert!(from + bytes.len() as u64 <= end);
                    self.grant(id, from + bytes.len() as u64);
                }
                Received::BlobStop { transfer, digest } => {
                    assert_eq!((transfer, from + bytes.len() as u64), (id, end));
                    return Ok(Downloaded { from, size, bytes, digest });
                }
                Received::BlobAbort { transfer, reason } if transfer == id => return Err(reason),
                Received::Invalidate { .. } => {}
                other => panic!("{other:?} in a download"),
            }
        }
    }
}
