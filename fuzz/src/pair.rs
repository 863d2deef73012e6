//! Fuzz target: a client machine and a server machine, joined by a simulated link.
//!
//! The input is a sequence of what the callers may do, and of what happens to the network between.
//!
//! * Two machines that keep to the rules never report a protocol violation.
//! * Every request has exactly one answer when all work has ended, unless the connection is lost.
//! * A blob that has arrived has the bytes that were sent.
//! * Nothing is left over at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use blobferry_protocol::testing::{Link, Pair, PairConfig, Source, Style, digest_of};
use blobferry_protocol::{
    Limits, Oid, Request, RequestError, RequestId, Tid, TransferEvent, TransferId, client, server,
};

use crate::input::Input;
use crate::message_gen;
use arbitrary::Unstructured;

/// The number of rounds within which all work ends.
const ROUNDS: usize = 400;

/// Tries a client and a server together.
pub fn pair(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut harness = Harness::new(&mut input);
    while let Some(act) = input.next_byte() {
        harness.act(act, &mut input);
        harness.check_events();
    }
    harness.settle();
}

/// Both ends, and what is known of them.
struct Harness {
    pair: Pair,
    /// The client's requests that are not answered yet.
    waiting: BTreeMap<RequestId, Request>,
    /// The requests that the server has received and not answered.
    asked: BTreeMap<RequestId, Request>,
    /// The number of the last request.
    last: u64,
    cut: bool,
}

impl Harness {
    fn new(input: &mut Unstructured<'_>) -> Harness {
        let mut config = || {
            let limits = message_gen::tight_limits();
            // The requests of one input must fit into the control queue.
            message_gen::config(if input.flag() {
                Limits::default()
            } else {
                Limits { control_queue: 1 << 20, ..limits }
            })
        };
        let (client, server) = (config(), config());
        let mut style = || if input.flag() { Style::Splicing } else { Style::Buffered };
        let (client_style, server_style) = (style(), style());
        let (up, down) = (link(input), link(input));
        let config = PairConfig { client, server, client_style, server_style, up, down };
        let pair = Pair::connected(config);
        Harness { pair, waiting: BTreeMap::new(), asked: BTreeMap::new(), last: 0, cut: false }
    }

    fn act(&mut self, act: u8, input: &mut Unstructured<'_>) {
        match act % 24 {
            0..=4 => self.request(input),
            5 => self.client_gives_up(input),
            6..=9 => self.answer(input),
            10 => drop(self.pair.step()),
            11 | 12 => self.pair.run(),
            13 => self.pair.advance(Duration::from_millis(1 << (input.byte() % 19))),
            14 => self.pair.client.hold_sinks(),
            15 => self.pair.server.hold_sinks(),
            16 => self.pair.client.release_sinks(),
            17 => self.pair.server.release_sinks(),
            18 => self.pair.set_up(link(input)),
            19 => self.pair.set_down(link(input)),
            20 => self.invalidate(input),
            21 => self.server_gives_up(input),
            22 => self.rare(input),
            _ => {
                for _ in 0..input.below(16) {
                    self.pair.step();
                }
            }
        }
    }

    fn request(&mut self, input: &mut Unstructured<'_>) {
        let request = message_gen::request(input);
        let made = match &request {
            Request::StoreBlob { txn, base, .. } => {
                let oid = Oid(input.byte().into());
                let source = Source {
                    digest_at_end: input.flag(),
                    fails_at: input.flag().then(|| input.number()),
                    ..Source::new(&content(oid))
                };
                let begun = self.pair.upload(*txn, oid, *base, source);
                begun.ok().map(RequestId::from)
            }
            other => self.pair.client.connection.request(other.clone()).ok(),
        };
        if let Some(id) = made {
            assert!(id.0 > self.last, "requests are numbered in order");
            self.last = id.0;
            self.waiting.insert(id, request);
        }
    }

    /// Cancels one of the client's requests or transfers.
    fn client_gives_up(&mut self, input: &mut Unstructured<'_>) {
        let id = self.recent(input);
        let client = &mut self.pair.client.connection;
        match input.below(4) {
            0 => drop(client.abort_blob(id.into(), message_gen::error(input))),
            1 => client.discard(id.into()),
            _ => drop(client.cancel(id)),
        }
    }

    fn recent(&self, input: &mut Unstructured<'_>) -> RequestId {
        RequestId(self.last.saturating_sub(input.below(6).into()))
    }

    /// Answers one of the requests, possibly before its transfer has ended.
    fn answer(&mut self, input: &mut Unstructured<'_>) {
        let nth = usize::from(input.byte()) % self.asked.len().max(1);
        let Some((&id, request)) = self.asked.iter().nth(nth) else { return };
        let request = request.clone();
        let error = match input.below(8) {
            0 => Some(message_gen::error(input)),
            _ => None,
        };
        self.answer_with(id, &request, error);
    }

    fn answer_with(&mut self, id: RequestId, request: &Request, error: Option<RequestError>) {
        let server = &mut self.pair.server.connection;
        let answered = match (error, request, message_gen::matching_reply(request)) {
            (Some(error), ..) => server.reply(id, Err(error)).is_ok(),
            (None, Request::SendBlob { blob, .. }, _) => {
                let source = Source::new(&content(blob.oid));
                match self.pair.serve(id.into(), source) {
                    Ok(()) => true,
                    Err(_) => self.pair.server.connection.reply(id, Err(RequestError::Cancelled)).is_ok(),
                }
            }
            (None, _, Some(reply)) => server.reply(id, Ok(reply)).is_ok(),
            (None, _, None) => false,
        };
        if answered {
            self.asked.remove(&id);
        }
    }

    fn invalidate(&mut self, input: &mut Unstructured<'_>) {
        let oids: Vec<Oid> = input.prefixed().iter().map(|n| Oid((*n).into())).collect();
        let sent = self.pair.server.connection.invalidate(Tid(input.number()), &oids);
        assert!(sent.is_ok() || self.is_lost());
    }

    fn server_gives_up(&mut self, input: &mut Unstructured<'_>) {
        let id = self.recent(input);
        let server = &mut self.pair.server.connection;
        match input.below(2) {
            0 => drop(server.abort_blob(id.into(), message_gen::error(input))),
            _ if self.asked.contains_key(&id) => {
                server.discard(id.into());
                if server.reply(id, Err(RequestError::Cancelled)).is_ok() {
                    self.asked.remove(&id);
                }
            }
            _ => {}
        }
    }

    fn rare(&mut self, input: &mut Unstructured<'_>) {
        match input.below(16) {
            0 => {
                self.pair.cut();
                self.cut = true;
            }
            1 => drop(self.pair.client.connection.goodbye()),
            2 => drop(self.pair.server.connection.goodbye()),
            3 => self.pair.oversleep(Duration::from_secs(input.byte().into())),
            _ => {}
        }
    }

    /// Returns whether the connection has ended without a fault of the machines.
    fn is_lost(&self) -> bool {
        let errors = [self.pair.client.connection.error(), self.pair.server.connection.error()];
        self.cut || errors.into_iter().any(|error| error.is_some())
    }

    /// Polls the events of both ends, and checks them.
    fn check_events(&mut self) {
        for error in [self.pair.client.connection.error(), self.pair.server.connection.error()] {
            assert!(
                error.is_none_or(|error| !error.is_protocol_violation()),
                "one reported a violation of the other: {error:?}"
            );
        }
        while let Some(event) = self.pair.server.event() {
            match event {
                server::Event::Request { id, request } => {
                    assert!(id.0 <= self.last, "{id:?} was not made");
                    assert!(self.asked.insert(id, request).is_none(), "{id:?} is reported twice");
                }
                server::Event::Transfer(TransferEvent::Stopped { transfer, .. }) => self.arrived(transfer),
                server::Event::Transfer(TransferEvent::Aborted { transfer, .. }) => {
                    self.asked.remove(&transfer.into());
                }
                _ => {}
            }
        }
        while let Some(event) = self.pair.client.event() {
            let answered = match event {
                client::Event::Reply { id, .. } => id,
                client::Event::Transfer(TransferEvent::Stopped { transfer, .. }) => {
                    self.downloaded(transfer);
                    transfer.into()
                }
                client::Event::Transfer(TransferEvent::Aborted { transfer, .. }) => transfer.into(),
                _ => continue,
            };
            assert!(self.waiting.remove(&answered).is_some(), "{answered:?} is answered twice");
        }
    }

    fn arrived(&self, transfer: TransferId) {
        let sink = self.pair.server.sink(transfer).expect("it has begun");
        let whole = sink.bytes.len() as u64 == sink.size;
        assert!(whole && sink.outcome == Some(Ok(digest_of(&sink.bytes))), "{transfer:?} is torn: {sink:?}");
    }

    fn downloaded(&self, transfer: TransferId) {
        let Some(Request::SendBlob { blob, from, upto }) = self.waiting.get(&transfer.into()) else {
            panic!("{transfer:?} was not asked for");
        };
        let content = content(blob.oid);
        let sink = self.pair.client.sink(transfer).expect("it has begun");
        let end = content.len().min(usize::try_from(*upto).unwrap_or(usize::MAX));
        assert_eq!(sink.bytes, content[*from as usize..end], "{transfer:?} is torn");
        assert_eq!(sink.outcome, Some(Ok(digest_of(&content))));
    }

    /// Answers the remaining requests until none is left, and checks that nothing is left over.
    fn settle(&mut self) {
        self.pair.client.release_sinks();
        self.pair.server.release_sinks();
        for _ in 0..ROUNDS {
            self.pair.run();
            self.check_events();
            let Some((id, request)) = self.asked.iter().map(|(id, request)| (*id, request.clone())).next()
            else {
                break;
            };
            self.answer_with(id, &request, None);
            if self.asked.contains_key(&id) {
                self.answer_with(id, &request, Some(RequestError::Cancelled));
            }
            assert!(!self.asked.contains_key(&id) || self.is_lost(), "{id:?} cannot be answered");
            if self.is_lost() {
                return;
            }
        }
        if self.is_lost() {
            return;
        }
        let (client, server) = (&self.pair.client.connection, &self.pair.server.connection);
        assert!(self.asked.is_empty() && self.waiting.is_empty(), "{:?} is not answered", self.waiting);
        assert_eq!((client.requests_in_flight(), server.requests_in_flight()), (0, 0));
        assert_eq!((client.backlog(), server.backlog()), (0, 0));
    }
}

/// Returns the bytes of an object's blobs.
fn content(oid: Oid) -> Vec<u8> {
    let size = oid.0 % 8 * 13;
    (0..size).map(|n| (n * 7 + oid.0) as u8).collect()
}

fn link(input: &mut Unstructured<'_>) -> Link {
    let fragments = match input.below(4) {
        0 => vec![1, 30],
        1 => vec![3, 1, usize::MAX],
        2 => input.up_to(4).iter().map(|size| usize::from(*size)).collect(),
        _ => vec![usize::MAX],
    };
    Link {
        delay: Duration::from_millis(input.byte().into()),
        fragments,
        capacity: input.one_of(&[1, 40, 1 << 10, 64 << 10]),
    }
}
