//! Fuzz target: the server machine, with a generated client and a caller that answers early, late,
//! wrongly or not at all.
//!
//! Besides the checks for every machine (`machine_harness.rs`): requests and transactions stay
//! within their limits. No request is reported twice.
//!
//! The first byte chooses the limits and whether the handshake is done. It also chooses what the
//! rest is: a list of acts of both sides, or a raw stream that a cooperative caller answers.

use std::collections::BTreeSet;
use std::time::Duration;

use blobferry_protocol::server::{Connection, Event, Server};
use blobferry_protocol::{
    Limits, Oid, Refusal, Reply, Request, RequestError, RequestId, Tid, Time, TransferEvent, TransferId,
};

use crate::input::Input;
use crate::machine_harness::MachineHarness;
use crate::message_gen::{self, Conversation, Sender};
use arbitrary::Unstructured;

type Machine = MachineHarness<Server>;

/// Tries the server machine.
pub fn server(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let choice = input.byte();
    let limits = if choice & 1 == 0 { message_gen::tight_limits() } else { Limits::default() };
    let thorough = choice & 12 == 12;
    let machine = match choice & 2 {
        0 => message_gen::server(limits),
        _ => Connection::new(Time::ZERO, message_gen::config(limits)),
    };
    let machine = MachineHarness::new(machine, limits, thorough);
    match choice & 16 {
        0 => acts(machine, limits, input),
        _ => stream(machine, input),
    }
}

/// Runs a list of acts of the client and the caller.
fn acts(mut harness: Machine, limits: Limits, mut input: Unstructured<'_>) {
    let mut conversation = Conversation::default();
    let mut reported = BTreeSet::new();
    while let Some(act) = input.next_byte() {
        let mut event = |_: &mut Machine, event: Event| {
            if let Event::Request { id, .. } = event {
                assert!(reported.insert(id), "{id:?} is reported twice");
            }
        };
        if act < 128 {
            let generated = message_gen::next_message(Sender::Client, &mut input, &mut conversation);
            harness.receive_generated(&generated, &mut event);
        } else {
            act_of_caller(&mut harness, &mut input);
            harness.events(&mut event);
        }
        assert!(harness.machine.requests_in_flight() <= limits.requests as usize);
        assert!(harness.machine.transactions().count() <= limits.transactions as usize);
        if harness.is_dead() {
            return;
        }
    }
    harness.send();
}

fn act_of_caller(harness: &mut Machine, input: &mut Unstructured<'_>) {
    let transfer = message_gen::transfer(input);
    let id = RequestId::from(transfer);
    match input.below(16) {
        0..=3 => reply(harness, id, input),
        4 | 5 => {
            let size = message_gen::offset(input);
            let started = harness.call(|machine| machine.start_blob(transfer, size, message_gen::DIGEST));
            assert!(started.is_none_or(|range| range.start <= range.end && range.end <= size));
        }
        6 | 7 => harness.store(transfer, None),
        8 => harness.store(transfer, Some(message_gen::offset(input))),
        9 => {
            harness.machine.discard(transfer);
            harness.forget(transfer);
        }
        10 => {
            let reason = message_gen::error(input);
            harness.call(|machine| machine.abort_blob(transfer, reason));
        }
        11 => {
            let time = Duration::from_secs(input.byte().into());
            harness.advance_time(time, &mut |_, _| {});
        }
        12 => handshake(harness, input),
        _ => harness.send(),
    }
}

fn reply(harness: &mut Machine, id: RequestId, input: &mut Unstructured<'_>) {
    let result = message_gen::result(input);
    if harness.call(|machine| machine.reply(id, result)).is_some() {
        harness.forget(id.into());
    }
}

fn handshake(harness: &mut Machine, input: &mut Unstructured<'_>) {
    match input.below(8) {
        0 => harness.call(|machine| machine.refuse(Refusal::Full)),
        1 => harness.call(|machine| machine.goodbye()),
        2 => harness.call(|machine| machine.finish_blob(TransferId(3), message_gen::DIGEST)),
        3..5 => {
            let oids: Vec<Oid> = input.prefixed().iter().map(|n| Oid(u64::MAX - u64::from(*n))).collect();
            harness.call(|machine| machine.invalidate(Tid::MAX, &oids.repeat(4)))
        }
        _ => harness.call(|machine| machine.welcome(Tid(3))),
    };
}

/// Feeds a stream in reads of one size. The caller answers every request at once.
fn stream(mut harness: Machine, mut input: Unstructured<'_>) {
    let size = usize::from(input.byte().max(1));
    let stream = input.take_rest();
    for read in stream.chunks(size) {
        harness.receive(read, false, &mut respond);
        if harness.is_dead() {
            break;
        }
        harness.store_all();
        harness.send();
    }
}

fn respond(harness: &mut Machine, event: Event) {
    match event {
        Event::Hello { .. } => drop(harness.call(|machine| machine.welcome(Tid(3)))),
        Event::Request { request: Request::StoreBlob { .. }, .. } => {}
        Event::Request { id, request } => {
            let answered = match message_gen::matching_reply(&request) {
                Some(reply) => harness.call(|machine| machine.reply(id, Ok(reply))),
                None => {
                    harness.call(|machine| machine.start_blob(id.into(), 100, message_gen::DIGEST)).map(drop)
                }
            };
            if answered.is_none() {
                harness.call(|machine| machine.reply(id, Err(RequestError::Cancelled)));
            }
        }
        Event::Transfer(TransferEvent::Stopped { transfer, .. }) => {
            harness.store(transfer, None);
            harness.call(|machine| machine.reply(transfer.into(), Ok(Reply::Done)));
            harness.forget(transfer);
        }
        _ => {}
    }
}
