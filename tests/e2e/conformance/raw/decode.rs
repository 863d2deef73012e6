//! Decodes messages and answers by sections 2 to 7 of PROTOCOL.md.

use std::io::{self, Read};

use super::encode::{Digest, Limits, Txn, message};

/// A message from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Welcome { version: u64, limits: Limits, last_tid: u64 },
    Refuse { refusal: u64, versions: Option<(u64, u64)> },
    Reply { id: u64, result: Result<Answer, Error> },
    Invalidate { tid: u64, oids: Vec<u64> },
    BlobStart { transfer: u64, from: u64, end: u64, size: u64, digest: Option<Digest> },
    BlobChunk { transfer: u64, offset: u64, payload: Vec<u8> },
    BlobStop { transfer: u64, digest: Digest },
    BlobAbort { transfer: u64, reason: Error },
    Credit { transfer: u64, upto: u64 },
    ConnectionCredit { upto: u64 },
    Ping { nonce: u64 },
    Pong { nonce: u64 },
    Goodbye,
}

/// A successful answer (section 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Voted,
    Finished(u64),
    /// For each conflict: oid, committed, base.
    Conflicts(Vec<[u64; 3]>),
    Outcome(Option<u64>),
    Revision(Revision),
    RevisionBefore(Option<Revision>),
    History(Vec<Entry>),
    Oids {
        first: u64,
        count: u64,
    },
    Status(Vec<(String, u64)>),
    Packed([u64; 3]),
    /// The last request, and for each unfinished upload: request, upto.
    Attached(u64, Vec<[u64; 2]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Revision {
    pub(super) tid: u64,
    pub(super) next: Option<u64>,
    pub(super) data: Vec<u8>,
    pub(super) blob: Option<(u64, Digest)>,
}

/// One revision in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) tid: u64,
    pub(super) user: Vec<u8>,
    pub(super) description: Vec<u8>,
    pub(super) size: Option<u64>,
    pub(super) blob: Option<(u64, Digest)>,
}

/// A request error: its number, and its fields by kind, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Error {
    pub(super) number: u64,
    pub(super) ints: Vec<u64>,
    pub(super) text: Option<String>,
    pub(super) txn: Option<Txn>,
}

/// The unread fields of a body. A field that violates the specification fails the test.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(body: &'a [u8]) -> Fields<'a> {
        Fields(body)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at_checked(len).expect("the body is too short");
        self.0 = rest;
        taken
    }

    pub(super) fn int(&mut self) -> u64 {
        let mut value = 0_u128;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)[0];
            value |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value.try_into().expect("more than 64 bits");
            }
        }
        panic!("the integer does not end");
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap()
    }

    pub(super) fn bytes(&mut self) -> Vec<u8> {
        let len = self.int();
        self.take(len as usize).to_vec()
    }

    fn text(&mut self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match self.int() {
            0 => None,
            1 => Some(some(self)),
            other => panic!("an optional value that begins with {other}"),
        }
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.int()).map(|_| one(self)).collect()
    }

    pub(super) fn limits(&mut self) -> Limits {
        Limits {
            frame: self.int(),
            chunk: self.int(),
            transfer_window: self.int(),
            connection_window: self.int(),
            transfers: self.int(),
            requests: self.int(),
            transactions: self.int(),
            control_queue: self.int(),
        }
    }

    fn blob(&mut self) -> Option<(u64, Digest)> {
        self.option(|fields| (fields.int(), fields.array()))
    }

    fn revision(&mut self) -> Revision {
        Revision { tid: self.int(), next: self.option(Self::int), data: self.bytes(), blob: self.blob() }
    }

    fn entry(&mut self) -> Entry {
        Entry {
            tid: self.int(),
            user: self.bytes(),
            description: self.bytes(),
            size: self.option(Self::int),
            blob: self.blob(),
        }
    }

    fn answer(&mut self) -> Answer {
        match self.int() {
            0 => Answer::Done,
            1 => Answer::Voted,
            2 => Answer::Finished(self.int()),
            3 => Answer::Conflicts(self.list(|fields| [fields.int(), fields.int(), fields.int()])),
            4 => match self.int() {
                0 => Answer::Outcome(Some(self.int())),
                1 => Answer::Outcome(None),
                other => panic!("an outcome {other}"),
            },
            5 => Answer::Revision(self.revision()),
            6 => Answer::RevisionBefore(self.option(Self::revision)),
            7 => Answer::History(self.list(Self::entry)),
            8 => Answer::Oids { first: self.int(), count: self.int() },
            9 => Answer::Status(self.list(|fields| (fields.text(), fields.int()))),
            10 => Answer::Packed([self.int(), self.int(), self.int()]),
            11 => Answer::Attached(self.int(), self.list(|fields| [fields.int(), fields.int()])),
            other => panic!("a reply {other}"),
        }
    }

    fn error(&mut self) -> Error {
        let number = self.int();
        let mut error = Error { number, ints: Vec::new(), text: None, txn: None };
        let fields = match number {
            0 => "i",
            1 | 2 | 19 => "ii",
            3 => "iiiii",
            4 | 5 | 7 => "x",
            6 => "xi",
            8 | 20 => "xt",
            9 => "tii",
            10 | 11 | 13 | 16..=18 => "t",
            12 => "iit",
            14 | 15 => "",
            other => panic!("an error {other}"),
        };
        for field in fields.chars() {
            match field {
                'i' => error.ints.push(self.int()),
                't' => error.text = Some(self.text()),
                _ => error.txn = Some(self.array()),
            }
        }
        error
    }

    pub(super) fn end(&self) {
        assert!(self.0.is_empty(), "bytes are left over: {:?}", self.0);
    }
}

/// Reads the body of the next frame. Returns `None` if the stream ends first.
pub(super) fn read_body(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match stream.read(&mut len[..1])? {
        0 => return Ok(None),
        _ => stream.read_exact(&mut len[1..])?,
    }
    let mut body = vec![0; u32::from_le_bytes(len) as usize];
    stream.read_exact(&mut body)?;
    Ok(Some(body))
}

/// Reads the next message of a server, with its payload.
pub(super) fn read_message(stream: &mut impl Read) -> io::Result<Option<Received>> {
    let Some(body) = read_body(stream)? else { return Ok(None) };
    let mut fields = Fields::of(&body);
    let (number, mut payload) = (fields.array::<1>()[0], 0);
    let received = match number {
        message::WELCOME => {
            Received::Welcome { version: fields.int(), limits: fields.limits(), last_tid: fields.int() }
        }
        message::REFUSE => {
            let refusal = fields.int();
            Received::Refuse { refusal, versions: (refusal == 0).then(|| (fields.int(), fields.int())) }
        }
        message::REPLY => {
            let id = fields.int();
            let result = match fields.int() {
                0 => Ok(fields.answer()),
                1 => Err(fields.error()),
                other => panic!("a result {other}"),
            };
            Received::Reply { id, result }
        }
        message::INVALIDATE => Received::Invalidate { tid: fields.int(), oids: fields.list(Fields::int) },
        message::BLOB_START => Received::BlobStart {
            transfer: fields.int(),
            from: fields.int(),
            end: fields.int(),
            size: fields.int(),
            digest: fields.option(Fields::array),
        },
        message::BLOB_CHUNK => {
            let (transfer, offset) = (fields.int(), fields.int());
            payload = fields.int() as usize;
            Received::BlobChunk { transfer, offset, payload: Vec::new() }
        }
        message::BLOB_STOP => Received::BlobStop { transfer: fields.int(), digest: fields.array() },
        message::BLOB_ABORT => Received::BlobAbort { transfer: fields.int(), reason: fields.error() },
        message::CREDIT => Received::Credit { transfer: fields.int(), upto: fields.int() },
        message::CONNECTION_CREDIT => Received::ConnectionCredit { upto: fields.int() },
        message::PING => Received::Ping { nonce: fields.int() },
        message::PONG => Received::Pong { nonce: fields.int() },
        message::GOODBYE => Received::Goodbye,
        other => panic!("a message {other} from a server"),
    };
    fields.end();
    Ok(Some(match received {
        Received::BlobChunk { transfer, offset, .. } => {
            let mut bytes = vec![0; payload];
            stream.read_exact(&mut bytes)?;
            Received::BlobChunk { transfer, offset, payload: bytes }
        }
        received => received,
    }))
}
