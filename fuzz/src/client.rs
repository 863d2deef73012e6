//! Fuzz target: the client machine, with a generated server and a caller that makes requests at any
//! time.
//!
//! Besides the checks for every machine (`machine_harness.rs`): requests stay within the server's
//! limit. Each request is answered at most once, and no other request is answered.
//!
//! The first byte chooses the limits and whether the handshake is done. It also chooses what the
//! rest is: a list of acts of both sides, or a raw stream for a client that has made every kind of
//! request.

use std::collections::BTreeSet;
use std::time::Duration;

use blobferry_protocol::client::{Client, Connection, Event};
use blobferry_protocol::{
    Limits, Oid, Request, RequestId, Tid, Time, TransferEvent, TransferId, TxnId, TxnMeta, UsageError,
};

use crate::input::Input;
use crate::machine_harness::MachineHarness;
use crate::message_gen::{self, Conversation, Sender};
use arbitrary::Unstructured;

type Machine = MachineHarness<Client>;

/// Tries the client machine.
pub fn client(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let choice = input.byte();
    let limits = if choice & 1 == 0 { message_gen::tight_limits() } else { Limits::default() };
    let thorough = choice & 12 == 12;
    let machine = match choice & 2 {
        0 => message_gen::client(limits),
        _ => Connection::new(Time::ZERO, message_gen::config(limits), b"key"),
    };
    let machine = MachineHarness::new(machine, limits, thorough);
    match choice & 16 {
        0 => acts(machine, input),
        _ => stream(machine, input),
    }
}

/// The requests that are not answered yet.
#[derive(Default)]
struct Waiting(BTreeSet<RequestId>);

impl Waiting {
    fn request_made(&mut self, id: Option<RequestId>) {
        if let Some(id) = id {
            assert!(self.0.insert(id), "{id:?} is made twice");
        }
    }

    fn on_event(&mut self, event: &Event) {
        let answered = match event {
            Event::Reply { id, .. } => *id,
            Event::Transfer(
                TransferEvent::Stopped { transfer, .. } | TransferEvent::Aborted { transfer, .. },
            ) => (*transfer).into(),
            Event::Transfer(TransferEvent::Started { transfer, .. }) => {
                assert!(self.0.contains(&(*transfer).into()), "{transfer:?} was not requested");
                return;
            }
            _ => return,
        };
        assert!(self.0.remove(&answered), "{answered:?} is answered twice, or was not requested");
    }
}

/// Runs a list of acts of the server and the caller.
fn acts(mut harness: Machine, mut input: Unstructured<'_>) {
    let (mut waiting, mut conversation) = (Waiting::default(), Conversation::default());
    while let Some(act) = input.next_byte() {
        if act < 128 {
            let generated = message_gen::next_message(Sender::Server, &mut input, &mut conversation);
            harness
                .receive_generated(&generated, &mut |_: &mut Machine, event: Event| waiting.on_event(&event));
        } else {
            act_of_caller(&mut harness, &mut waiting, &mut input);
        }
        assert!(harness.machine.requests_in_flight() <= harness.machine.peer_limits().requests as usize);
        if harness.is_dead() {
            return;
        }
        assert!(waiting.0.len() <= harness.machine.requests_in_flight(), "one was forgotten");
    }
    harness.send();
}

fn act_of_caller(harness: &mut Machine, waiting: &mut Waiting, input: &mut Unstructured<'_>) {
    match input.below(16) {
        0..=4 => waiting.request_made(make_request(harness, message_gen::request(input), input)),
        5 => {
            let id = message_gen::transfer(input).into();
            if harness.call(|machine| machine.cancel(id)).is_some() {
                harness.forget(id.into());
            }
        }
        6 | 7 => harness.store(message_gen::transfer(input), None),
        8 => harness.store(message_gen::transfer(input), Some(message_gen::offset(input))),
        9 => {
            let transfer = message_gen::transfer(input);
            harness.machine.discard(transfer);
            harness.forget(transfer);
        }
        10 => {
            let (transfer, reason) = (message_gen::transfer(input), message_gen::error(input));
            harness.call(|machine| machine.abort_blob(transfer, reason));
        }
        11 => {
            let time = Duration::from_secs(input.byte().into());
            harness.advance_time(time, &mut |_, event| waiting.on_event(&event));
        }
        12 => {
            let transfer = message_gen::transfer(input);
            harness.call(|machine| machine.finish_blob(transfer, message_gen::DIGEST));
        }
        13 if input.below(8) == 0 => drop(harness.call(|machine| machine.goodbye())),
        _ => harness.send(),
    }
}

/// Makes a request. A blob is uploaded, whole or from an offset.
fn make_request(harness: &mut Machine, request: Request, input: &mut Unstructured<'_>) -> Option<RequestId> {
    match request {
        Request::StoreBlob { txn, oid, base, data } => {
            let refused = harness.call(|machine| {
                let request = Request::StoreBlob { txn, oid, base, data: data.clone() };
                machine.request(request)
            });
            assert_eq!(refused, None, "{:?}", UsageError::UseUpload);
            let (from, size) = (message_gen::offset(input), message_gen::offset(input));
            let rest = from.min(size)..size;
            let digest = input.flag().then_some(message_gen::DIGEST);
            let begun = harness.call(|machine| machine.resume_upload(txn, oid, base, data, rest, digest));
            begun.map(RequestId::from)
        }
        request => harness.call(|machine| machine.request(request)),
    }
}

/// Feeds a stream in reads of one size to a client that has made every kind of request.
fn stream(mut harness: Machine, mut input: Unstructured<'_>) {
    let size = usize::from(input.byte().max(1));
    let mut waiting = Waiting::default();
    request_everything(&mut harness, &mut waiting);
    let stream = input.take_rest();
    for read in stream.chunks(size) {
        harness.receive(read, false, &mut |harness: &mut Machine, event: Event| {
            waiting.on_event(&event);
            match event {
                Event::Connected(_) => request_everything(harness, &mut waiting),
                Event::Transfer(TransferEvent::Stopped { transfer, .. }) => harness.store(transfer, None),
                _ => {}
            }
        });
        if harness.is_dead() {
            break;
        }
        harness.send();
    }
}

fn request_everything(harness: &mut Machine, waiting: &mut Waiting) {
    let (txn, oid) = (TxnId([0; 16]), Oid(1));
    let blob = message_gen::blob(&mut Unstructured::new(&[1, 1]));
    let upload = harness.call(|machine| {
        machine.request(Request::Begin { txn, meta: TxnMeta::default() })?;
        let data = vec![1, 2, 3];
        machine.upload(txn, oid, Tid::ZERO, data, 40, Some(message_gen::DIGEST))
    });
    if let Some(TransferId(upload)) = upload {
        waiting.request_made(Some(RequestId(upload - 1)));
        waiting.request_made(Some(RequestId(upload)));
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
        waiting.request_made(harness.call(|machine| machine.request(request)));
    }
}
