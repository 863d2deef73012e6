//! The client's machine, under a server that was made up, and a caller who asks for things at any time.
//!
//! Beside what holds for every machine (`tried.rs`): requests stay within the server's limit, and each of them is
//! answered at most once, and only if it was made.
//!
//! The first byte chooses: whether the server has welcomed the client, the limits, and whether the rest is a list of
//! what both do, or a stream of bytes that answers a client who has asked for one of everything.

use std::collections::BTreeSet;
use std::time::Duration;

use blobferry_protocol::client::{Client, Connection, Event};
use blobferry_protocol::{
    Limits, Oid, Request, RequestId, Tid, Time, TransferEvent, TransferId, TxnId, TxnMeta, UsageError,
};

use crate::bytes::Bytes;
use crate::say::{self, Speaker, Talk};
use crate::tried::Tried;

type Machine = Tried<Client>;

/// Tries a client's machine.
pub fn client(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let choice = bytes.byte();
    let limits = if choice & 1 == 0 { say::tight() } else { Limits::default() };
    let thorough = choice & 12 == 12;
    let machine = match choice & 2 {
        0 => say::client(limits),
        _ => Connection::new(Time::ZERO, say::config(limits), b"key"),
    };
    let machine = Tried::new(machine, limits, thorough);
    match choice & 16 {
        0 => acts(machine, bytes),
        _ => stream(machine, bytes),
    }
}

/// The requests that wait for their answer.
#[derive(Default)]
struct Waiting(BTreeSet<RequestId>);

impl Waiting {
    fn asked(&mut self, id: Option<RequestId>) {
        if let Some(id) = id {
            assert!(self.0.insert(id), "{id:?} is made twice");
        }
    }

    fn heard(&mut self, event: &Event) {
        let answered = match event {
            Event::Reply { id, .. } => *id,
            Event::Transfer(
                TransferEvent::Stopped { transfer, .. } | TransferEvent::Aborted { transfer, .. },
            ) => (*transfer).into(),
            Event::Transfer(TransferEvent::Started { transfer, .. }) => {
                assert!(self.0.contains(&(*transfer).into()), "nobody has asked for {transfer:?}");
                return;
            }
            _ => return,
        };
        assert!(self.0.remove(&answered), "{answered:?} is answered twice, or was not asked");
    }
}

/// A list of what is said, and done.
fn acts(mut tried: Machine, mut bytes: Bytes<'_>) {
    let (mut waiting, mut talk) = (Waiting::default(), Talk::default());
    while let Some(act) = bytes.next() {
        if act < 128 {
            let said = say::next(Speaker::Server, &mut bytes, &mut talk);
            tried.say(&said, &mut |_: &mut Machine, event: Event| waiting.heard(&event));
        } else {
            act_of_caller(&mut tried, &mut waiting, &mut bytes);
        }
        assert!(tried.machine.requests_in_flight() <= tried.machine.peer_limits().requests as usize);
        if tried.is_dead() {
            return;
        }
        assert!(waiting.0.len() <= tried.machine.requests_in_flight(), "one was forgotten");
    }
    tried.send();
}

fn act_of_caller(tried: &mut Machine, waiting: &mut Waiting, bytes: &mut Bytes<'_>) {
    match bytes.below(16) {
        0..=4 => waiting.asked(ask(tried, say::request(bytes), bytes)),
        5 => {
            let id = say::transfer(bytes).into();
            if tried.call(|machine| machine.cancel(id)).is_some() {
                tried.forget(id.into());
            }
        }
        6 | 7 => tried.store(say::transfer(bytes), None),
        8 => tried.store(say::transfer(bytes), Some(say::offset(bytes))),
        9 => {
            let transfer = say::transfer(bytes);
            tried.machine.discard(transfer);
            tried.forget(transfer);
        }
        10 => {
            let (transfer, reason) = (say::transfer(bytes), say::error(bytes));
            tried.call(|machine| machine.abort_blob(transfer, reason));
        }
        11 => {
            let time = Duration::from_secs(bytes.byte().into());
            tried.pass(time, &mut |_, event| waiting.heard(&event));
        }
        12 => {
            let transfer = say::transfer(bytes);
            tried.call(|machine| machine.finish_blob(transfer, say::DIGEST));
        }
        13 if bytes.below(8) == 0 => drop(tried.call(|machine| machine.goodbye())),
        _ => tried.send(),
    }
}

/// Makes a request; a blob is uploaded, whole or from somewhere on.
fn ask(tried: &mut Machine, request: Request, bytes: &mut Bytes<'_>) -> Option<RequestId> {
    match request {
        Request::StoreBlob { txn, oid, base, data } => {
            let refused = tried.call(|machine| {
                let request = Request::StoreBlob { txn, oid, base, data: data.clone() };
                machine.request(request)
            });
            assert_eq!(refused, None, "{:?}", UsageError::UseUpload);
            let (from, size) = (say::offset(bytes), say::offset(bytes));
            let rest = from.min(size)..size;
            let digest = bytes.flag().then_some(say::DIGEST);
            let begun = tried.call(|machine| machine.resume_upload(txn, oid, base, data, rest, digest));
            begun.map(RequestId::from)
        }
        request => tried.call(|machine| machine.request(request)),
    }
}

/// A stream in reads of one size, for a client who has asked for one of everything.
fn stream(mut tried: Machine, mut bytes: Bytes<'_>) {
    let size = usize::from(bytes.byte().max(1));
    let mut waiting = Waiting::default();
    ask_for_everything(&mut tried, &mut waiting);
    let stream = bytes.rest();
    for read in stream.chunks(size) {
        tried.hear(read, false, &mut |tried: &mut Machine, event: Event| {
            waiting.heard(&event);
            match event {
                Event::Connected(_) => ask_for_everything(tried, &mut waiting),
                Event::Transfer(TransferEvent::Stopped { transfer, .. }) => tried.store(transfer, None),
                _ => {}
            }
        });
        if tried.is_dead() {
            break;
        }
        tried.send();
    }
}

fn ask_for_everything(tried: &mut Machine, waiting: &mut Waiting) {
    let (txn, oid) = (TxnId([0; 16]), Oid(1));
    let blob = say::blob(&mut Bytes::new(&[1, 1]));
    let upload = tried.call(|machine| {
        machine.request(Request::Begin { txn, meta: TxnMeta::default() })?;
        let data = vec![1, 2, 3];
        machine.upload(txn, oid, Tid::ZERO, data, 40, Some(say::DIGEST))
    });
    if let Some(TransferId(upload)) = upload {
        waiting.asked(Some(RequestId(upload - 1)));
        waiting.asked(Some(RequestId(upload)));
    }
    for request in [
        Request::SendBlob { blob, from: 0, upto: u64::MAX },
        Request::SendBlob { blob, from: 16, upto: 64 },
        Request::Load { oid },
        Request::Commit { txn },
        Request::Outcome { txn },
        Request::LoadBefore { oid, before: Tid::MAX },
        Request::LoadSerial { oid, tid: Tid(1) },
        Request::History { oid, limit: 3 },
        Request::NewOids { count: 3 },
        Request::Status,
        Request::Pack { before: Tid(1) },
        Request::Attach { txn: TxnId([1; 16]) },
    ] {
        waiting.asked(tried.call(|machine| machine.request(request)));
    }
}
