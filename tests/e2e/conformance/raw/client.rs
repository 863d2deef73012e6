//! A client over a plain socket that keeps to the specification and checks that the server does.

use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};

use super::decode::{Answer, Error, Received, read_message};
use super::encode::{Body, Digest, Limits, Txn, message, request};
use super::with_timeouts;

pub(super) struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    /// Limits of this client, and of the server.
    own: Limits,
    pub(super) limits: Limits,
    /// The last tid, from the handshake.
    pub(super) last_tid: u64,
    last_id: u64,
    /// Answers that arrived before a call waits for them.
    answers: BTreeMap<u64, Result<Answer, Error>>,
    /// All invalidations received: tid and oids.
    pub(super) invalidations: Vec<(u64, Vec<u64>)>,
    /// Credit for uploads, by transfer and for the connection, and the number of bytes sent.
    credit: BTreeMap<u64, u64>,
    connection_credit: u64,
    sent: u64,
    /// Credit for downloads: granted by transfer and for the connection, and the number of bytes
    /// received.
    granted: BTreeMap<u64, u64>,
    connection_granted: u64,
    received: u64,
}

/// A complete download.
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
    /// Connects and performs the handshake.
    pub(super) fn new(address: &str) -> Client {
        Client::with(address, Limits::DEFAULT)
    }

    /// Like [`Client::new`], with other limits.
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

    /// Connects without a handshake.
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
            invalidations: Vec::new(),
            credit: BTreeMap::new(),
            connection_credit: 0,
            sent: 0,
            granted: BTreeMap::new(),
            connection_granted: own.connection_window,
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

    /// Sends a request; returns its id.
    pub(super) fn submit(&mut self, request: Body) -> u64 {
        self.last_id += 1;
        self.send(Body::numbered(self.last_id, &request));
        self.last_id
    }

    /// Returns the next message. Credit is accounted for and pings are answered.
    pub(super) fn receive(&mut self) -> Received {
        self.receive_or_end().expect("the server closed the connection")
    }

    fn receive_or_end(&mut self) -> Option<Received> {
        loop {
            let message = match read_message(&mut self.reader) {
                Ok(message) => message?,
                // The server closed the connection within a message, or with unread input.
                Err(error)
                    if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
                {
                    return None;
                }
                Err(error) => panic!("{error}"),
            };
            match &message {
                Received::Ping { nonce } => {
                    let pong = Body::new(message::PONG).int(*nonce);
                    self.send(pong);
                    continue;
                }
                Received::Invalidate { tid, oids } => self.invalidations.push((*tid, oids.clone())),
                Received::Credit { transfer, upto } => {
                    let before = self.credit.insert(*transfer, *upto);
                    assert!(before.is_some_and(|before| before <= *upto), "{message:?} after {before:?}");
                }
                Received::ConnectionCredit { upto } => {
                    assert!(*upto >= self.connection_credit, "{message:?}");
                    self.connection_credit = *upto;
                }
                Received::BlobStart { transfer, from, .. } => {
                    self.granted.insert(*transfer, from + self.own.transfer_window);
                }
                Received::BlobChunk { transfer, offset, payload } => {
                    let len = payload.len() as u64;
                    self.received += len;
                    assert!((1..=self.own.chunk).contains(&len), "a chunk of {len} bytes");
                    assert!(offset + len <= self.granted[transfer], "beyond the credit");
                    assert!(self.received <= self.connection_granted, "beyond the connection's credit");
                }
                _ => {}
            }
            return Some(message);
        }
    }

    /// Receives until the server closes the connection, then closes it; returns the messages.
    pub(super) fn receive_to_the_end(&mut self) -> Vec<Received> {
        let message = std::iter::from_fn(|| self.receive_or_end()).collect();
        // The server may have closed the socket completely.
        let _ = self.stream.shutdown(Shutdown::Both);
        message
    }

    /// Waits for the answer to a request that is not a download.
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
                other => panic!("{other:?} instead of an answer"),
            }
        }
    }

    pub(super) fn call(&mut self, request: Body) -> Result<Answer, Error> {
        let id = self.submit(request);
        self.answer(id)
    }

    /// Calls and expects success without a result.
    #[track_caller]
    pub(super) fn done(&mut self, request: Body) {
        assert_eq!(self.call(request), Ok(Answer::Done));
    }

    /// Calls and expects a refusal; returns the error.
    #[track_caller]
    pub(super) fn refused(&mut self, request: Body) -> Error {
        self.call(request).unwrap_err()
    }

    /// Commits a transaction; returns the tid.
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

    /// Returns one of the server's counters.
    pub(super) fn counter(&mut self, name: &str) -> u64 {
        let Ok(Answer::Status(counters)) = self.call(request::status()) else { panic!("no status") };
        counters.into_iter().find(|(counter, _)| counter == name).unwrap().1
    }

    /// Begins a transaction and stores one record.
    pub(super) fn begin_and_store(&mut self, txn: Txn, oid: u64, base: u64, data: &[u8]) {
        self.done(request::begin(txn, b"", b""));
        self.done(request::store(txn, oid, base, data));
    }

    /// Commits one record; returns the tid.
    pub(super) fn put(&mut self, txn: Txn, oid: u64, base: u64, data: &[u8]) -> u64 {
        self.begin_and_store(txn, oid, base, data);
        self.commit(txn)
    }

    /// Commits one new blob; returns its oid and tid.
    pub(super) fn put_blob(&mut self, txn: Txn, bytes: &[u8]) -> (u64, u64) {
        let oid = self.new_oid();
        self.done(request::begin(txn, b"", b""));
        let stored = self.upload(txn, oid, 0, bytes);
        assert_eq!(self.answer(stored), Ok(Answer::Done));
        (oid, self.commit(txn))
    }

    /// Requests to store a blob and starts its transfer; returns the transfer id.
    pub(super) fn start_upload(&mut self, txn: Txn, oid: u64, base: u64, size: u64) -> u64 {
        let transfer = self.submit(request::store_blob(txn, oid, base, b"record"));
        self.credit.insert(transfer, self.limits.transfer_window);
        self.send(Body::blob_start(transfer, 0, size, size));
        transfer
    }

    /// Sends a part of a blob within the credit, and waits for more credit if there is none.
    pub(super) fn send_payload(&mut self, transfer: u64, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let allowed = (self.credit[&transfer] - offset).min(self.connection_credit - self.sent);
            let len = allowed.min(self.limits.chunk).min(bytes.len() as u64);
            if len == 0 {
                match self.receive() {
                    Received::Credit { .. }
                    | Received::ConnectionCredit { .. }
                    | Received::Invalidate { .. } => {}
                    other => panic!("{other:?} instead of credit"),
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

    /// Uploads a whole blob; returns the request id, whose answer is still to be received.
    pub(super) fn upload(&mut self, txn: Txn, oid: u64, base: u64, bytes: &[u8]) -> u64 {
        let transfer = self.start_upload(txn, oid, base, bytes.len() as u64);
        self.send_payload(transfer, 0, bytes);
        self.send(Body::blob_stop(transfer, digest(bytes)));
        transfer
    }

    /// Grants credit for a download whose bytes up to `offset` are stored.
    pub(super) fn grant(&mut self, transfer: u64, offset: u64) {
        let upto = offset + self.own.transfer_window;
        self.granted.insert(transfer, upto);
        self.send(Body::new(message::CREDIT).ints([transfer, upto]));
        self.grant_connection(self.received + self.own.connection_window);
    }

    /// Grants credit for the connection; it never decreases.
    pub(super) fn grant_connection(&mut self, upto: u64) {
        self.connection_granted = self.connection_granted.max(upto);
        self.send(Body::new(message::CONNECTION_CREDIT).int(self.connection_granted));
    }

    /// Grants connection credit for all received bytes.
    pub(super) fn grant_received(&mut self) {
        self.grant_connection(self.received + self.own.connection_window);
    }

    /// Downloads a range of a blob.
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
