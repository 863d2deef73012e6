//! Encodes messages and requests by sections 2 to 7 of PROTOCOL.md.

pub(super) type Txn = [u8; 16];
pub(super) type Digest = [u8; 32];

/// Message numbers (section 4).
pub(super) mod message {
    pub(crate) const HELLO: u8 = 0;
    pub(crate) const WELCOME: u8 = 1;
    pub(crate) const REFUSE: u8 = 2;
    pub(crate) const REQUEST: u8 = 3;
    pub(crate) const REPLY: u8 = 4;
    pub(crate) const INVALIDATE: u8 = 5;
    pub(crate) const BLOB_START: u8 = 6;
    pub(crate) const BLOB_CHUNK: u8 = 7;
    pub(crate) const BLOB_STOP: u8 = 8;
    pub(crate) const BLOB_ABORT: u8 = 9;
    pub(crate) const CREDIT: u8 = 10;
    pub(crate) const CONNECTION_CREDIT: u8 = 11;
    pub(crate) const CANCEL: u8 = 12;
    pub(crate) const PING: u8 = 13;
    pub(crate) const PONG: u8 = 14;
    pub(crate) const GOODBYE: u8 = 15;
}

/// Request error numbers (section 7).
pub(super) mod error {
    pub(crate) const NO_SUCH_OBJECT: u64 = 0;
    pub(crate) const NO_SUCH_REVISION: u64 = 1;
    pub(crate) const NO_SUCH_BLOB: u64 = 2;
    pub(crate) const BAD_RANGE: u64 = 3;
    pub(crate) const NO_SUCH_TRANSACTION: u64 = 4;
    pub(crate) const TRANSACTION_EXISTS: u64 = 5;
    pub(crate) const WRONG_PHASE: u64 = 6;
    pub(crate) const DOOMED: u64 = 7;
    pub(crate) const ABORTED: u64 = 8;
    pub(crate) const LIMIT: u64 = 9;
    pub(crate) const MISMATCH: u64 = 13;
    pub(crate) const CANCELLED: u64 = 14;
    pub(crate) const STOPPING: u64 = 15;
    pub(crate) const SOURCE: u64 = 16;
    pub(crate) const DEADLINE: u64 = 19;
}

/// Limits of a side (section 5), in the order of the fields on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) frame: u64,
    pub(super) chunk: u64,
    pub(super) transfer_window: u64,
    pub(super) connection_window: u64,
    pub(super) transfers: u64,
    pub(super) requests: u64,
    pub(super) transactions: u64,
    pub(super) control_queue: u64,
}

impl Limits {
    pub(super) const DEFAULT: Limits = Limits {
        frame: 16 << 20,
        chunk: 256 << 10,
        transfer_window: 2 << 20,
        connection_window: 4 << 20,
        transfers: 1024,
        requests: 4096,
        transactions: 256,
        control_queue: 32 << 20,
    };
}

/// The body of one message under construction.
#[derive(Clone, Debug)]
pub(super) struct Body(Vec<u8>);

impl Body {
    pub(super) fn new(message: u8) -> Body {
        Body(vec![message])
    }

    /// A request with this request number; [`Body::numbered`] adds the id.
    pub(super) fn request(number: u8) -> Body {
        Body(vec![number])
    }

    /// Appends an unsigned integer of any width, or the number of a variant.
    pub(super) fn int(mut self, mut value: u64) -> Body {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    pub(super) fn ints<const N: usize>(self, values: [u64; N]) -> Body {
        values.into_iter().fold(self, Body::int)
    }

    /// Appends a fixed array, or bytes that are encoded already.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Body {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends bytes or text with its length.
    pub(super) fn bytes(self, bytes: &[u8]) -> Body {
        self.int(bytes.len() as u64).raw(bytes)
    }

    pub(super) fn limits(self, limits: Limits) -> Body {
        let Limits { frame, chunk, transfer_window, connection_window, .. } = limits;
        let Limits { transfers, requests, transactions, control_queue, .. } = limits;
        self.ints([frame, chunk, transfer_window, connection_window]).ints([
            transfers,
            requests,
            transactions,
            control_queue,
        ])
    }

    pub(super) fn hello(version_min: u64, version_max: u64, limits: Limits, credentials: &[u8]) -> Body {
        let hello = Body::new(message::HELLO).raw(b"blobfery").ints([version_min, version_max]);
        hello.limits(limits).bytes(credentials)
    }

    pub(super) fn welcome(limits: Limits, last_tid: u64) -> Body {
        Body::new(message::WELCOME).int(1).limits(limits).int(last_tid)
    }

    /// Returns a valid hello with the default limits.
    pub(super) fn default_hello() -> Body {
        Body::hello(1, 1, Limits::DEFAULT, b"")
    }

    /// Returns the message that carries a request.
    pub(super) fn numbered(id: u64, request: &Body) -> Body {
        Body::new(message::REQUEST).int(id).raw(request.as_bytes())
    }

    pub(super) fn blob_start(transfer: u64, from: u64, end: u64, size: u64) -> Body {
        Body::new(message::BLOB_START).ints([transfer, from, end, size, 0])
    }

    pub(super) fn blob_chunk(transfer: u64, offset: u64, len: u64) -> Body {
        Body::new(message::BLOB_CHUNK).ints([transfer, offset, len])
    }

    pub(super) fn blob_stop(transfer: u64, digest: Digest) -> Body {
        Body::new(message::BLOB_STOP).int(transfer).raw(&digest)
    }

    /// `reason` is the number of an error; append its fields, if it has any.
    pub(super) fn blob_abort(transfer: u64, reason: u64) -> Body {
        Body::new(message::BLOB_ABORT).ints([transfer, reason])
    }

    /// Returns the frame with this body.
    pub(super) fn frame(self) -> Vec<u8> {
        [&(self.0.len() as u32).to_le_bytes(), &self.0[..]].concat()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Requests (section 7): the number and the fields of each.
pub(super) mod request {
    use super::{Body, Digest, Txn};

    fn of(number: u8, txn: Txn) -> Body {
        Body::request(number).raw(&txn)
    }

    pub(crate) fn begin(txn: Txn, user: &[u8], description: &[u8]) -> Body {
        of(0, txn).bytes(user).bytes(description)
    }

    pub(crate) fn store(txn: Txn, oid: u64, base: u64, data: &[u8]) -> Body {
        of(1, txn).ints([oid, base]).bytes(data)
    }

    pub(crate) fn store_blob(txn: Txn, oid: u64, base: u64, data: &[u8]) -> Body {
        of(2, txn).ints([oid, base]).bytes(data)
    }

    pub(crate) fn store_shared(txn: Txn, oid: u64, name: &str, size: u64, digest: Digest) -> Body {
        of(3, txn).ints([oid, 0]).bytes(b"").bytes(name.as_bytes()).int(size).raw(&digest)
    }

    pub(crate) fn delete(txn: Txn, oid: u64, base: u64) -> Body {
        of(4, txn).ints([oid, base])
    }

    pub(crate) fn vote(txn: Txn) -> Body {
        of(5, txn)
    }

    pub(crate) fn finish(txn: Txn) -> Body {
        of(6, txn)
    }

    pub(crate) fn commit(txn: Txn) -> Body {
        of(7, txn)
    }

    pub(crate) fn abort(txn: Txn) -> Body {
        of(8, txn)
    }

    pub(crate) fn outcome(txn: Txn) -> Body {
        of(9, txn)
    }

    pub(crate) fn load(oid: u64) -> Body {
        Body::request(10).int(oid)
    }

    pub(crate) fn load_before(oid: u64, before: u64) -> Body {
        Body::request(11).ints([oid, before])
    }

    pub(crate) fn load_serial(oid: u64, tid: u64) -> Body {
        Body::request(12).ints([oid, tid])
    }

    pub(crate) fn history(oid: u64, limit: u64) -> Body {
        Body::request(13).ints([oid, limit])
    }

    pub(crate) fn new_oids(count: u64) -> Body {
        Body::request(14).int(count)
    }

    pub(crate) fn send_blob(oid: u64, tid: u64, from: u64, upto: u64) -> Body {
        Body::request(15).ints([oid, tid, from, upto])
    }

    pub(crate) fn status() -> Body {
        Body::request(16)
    }

    pub(crate) fn pack(before: u64) -> Body {
        Body::request(17).int(before)
    }

    pub(crate) fn attach(txn: Txn) -> Body {
        of(18, txn)
    }
}
