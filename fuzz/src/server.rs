//! The server's machine, under a client that was made up, and a caller who answers early, late, wrongly or not at all.
//!
//! Beside what holds for every machine (`tried.rs`): requests and transactions stay within their limits, nobody hears
//! of a request twice, and every request that was answered was asked.
//!
//! The first byte chooses: whether the client comes with a proper hello, its limits, and whether the rest is a list of
//! what both do, or a stream of bytes that an obliging caller answers.

use std::collections::BTreeSet;
use std::time::Duration;

use blobferry_protocol::server::{Connection, Event, Server};
use blobferry_protocol::{
    Limits, Oid, Refusal, Reply, Request, RequestError, RequestId, Tid, Time, TransferEvent, TransferId,
};

use crate::bytes::Bytes;
use crate::say::{self, Speaker, Talk};
use crate::tried::Tried;

type Machine = Tried<Server>;

/// Tries a server's machine.
pub fn server(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let choice = bytes.byte();
    let limits = if choice & 1 == 0 { say::tight() } else { Limits::default() };
    let thorough = choice & 12 == 12;
    let machine = match choice & 2 {
        0 => say::server(limits),
        _ => Connection::new(Time::ZERO, say::config(limits)),
    };
    let machine = Tried::new(machine, limits, thorough);
    match choice & 16 {
        0 => acts(machine, limits, bytes),
        _ => stream(machine, bytes),
    }
}

/// A list of what is said, and done.
fn acts(mut tried: Machine, limits: Limits, mut bytes: Bytes<'_>) {
    let mut talk = Talk::default();
    let mut told = BTreeSet::new();
    while let Some(act) = bytes.next() {
        let mut event = |_: &mut Machine, event: Event| {
            if let Event::Request { id, .. } = event {
                assert!(told.insert(id), "{id:?} is told twice");
            }
        };
        if act < 128 {
            let said = say::next(Speaker::Client, &mut bytes, &mut talk);
            tried.say(&said, &mut event);
        } else {
            act_of_caller(&mut tried, &mut bytes);
            tried.events(&mut event);
        }
        assert!(tried.machine.requests_in_flight() <= limits.requests as usize);
        assert!(tried.machine.transactions().count() <= limits.transactions as usize);
        if tried.is_dead() {
            return;
        }
    }
    tried.send();
}

fn act_of_caller(tried: &mut Machine, bytes: &mut Bytes<'_>) {
    let transfer = say::transfer(bytes);
    let id = RequestId::from(transfer);
    match bytes.below(16) {
        0..=3 => reply(tried, id, bytes),
        4 | 5 => {
            let size = say::offset(bytes);
            let started = tried.call(|machine| machine.start_blob(transfer, size, say::DIGEST));
            assert!(started.is_none_or(|range| range.start <= range.end && range.end <= size));
        }
        6 | 7 => tried.store(transfer, None),
        8 => tried.store(transfer, Some(say::offset(bytes))),
        9 => {
            tried.machine.discard(transfer);
            tried.forget(transfer);
        }
        10 => {
            let reason = say::error(bytes);
            tried.call(|machine| machine.abort_blob(transfer, reason));
        }
        11 => {
            let time = Duration::from_secs(bytes.byte().into());
            tried.pass(time, &mut |_, _| {});
        }
        12 => handshake(tried, bytes),
        _ => tried.send(),
    }
}

fn reply(tried: &mut Machine, id: RequestId, bytes: &mut Bytes<'_>) {
    let result = say::result(bytes);
    if tried.call(|machine| machine.reply(id, result)).is_some() {
        tried.forget(id.into());
    }
}

fn handshake(tried: &mut Machine, bytes: &mut Bytes<'_>) {
    match bytes.below(8) {
        0 => tried.call(|machine| machine.refuse(Refusal::Full)),
        1 => tried.call(|machine| machine.goodbye()),
        2 => tried.call(|machine| machine.finish_blob(TransferId(3), say::DIGEST)),
        3..5 => {
            let oids: Vec<Oid> = bytes.run().iter().map(|n| Oid(u64::MAX - u64::from(*n))).collect();
            tried.call(|machine| machine.invalidate(Tid::MAX, &oids.repeat(4)))
        }
        _ => tried.call(|machine| machine.welcome(Tid(3))),
    };
}

/// A stream in reads of one size, and a caller who does at once whatever is asked for.
fn stream(mut tried: Machine, mut bytes: Bytes<'_>) {
    let size = usize::from(bytes.byte().max(1));
    let stream = bytes.rest();
    for read in stream.chunks(size) {
        tried.hear(read, false, &mut oblige);
        if tried.is_dead() {
            break;
        }
        tried.store_all();
        tried.send();
    }
}

fn oblige(tried: &mut Machine, event: Event) {
    match event {
        Event::Hello { .. } => drop(tried.call(|machine| machine.welcome(Tid(3)))),
        Event::Request { request: Request::StoreBlob { .. }, .. } => {}
        Event::Request { id, request } => {
            let answered = match say::fitting(&request) {
                Some(reply) => tried.call(|machine| machine.reply(id, Ok(reply))),
                None => tried.call(|machine| machine.start_blob(id.into(), 100, say::DIGEST)).map(drop),
            };
            if answered.is_none() {
                tried.call(|machine| machine.reply(id, Err(RequestError::Cancelled)));
            }
        }
        Event::Transfer(TransferEvent::Stopped { transfer, .. }) => {
            tried.store(transfer, None);
            tried.call(|machine| machine.reply(transfer.into(), Ok(Reply::Done)));
            tried.forget(transfer);
        }
        _ => {}
    }
}
