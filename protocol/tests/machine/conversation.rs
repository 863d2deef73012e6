//! Random conversations: every byte arrives once and in order, every request has one answer, and
//! everything ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blobferry_protocol::testing::{Link, Pair, PairConfig, Source, Style, digest_of};
use blobferry_protocol::{
    BlobId, Config, Limits, Oid, Reply, Request, RequestError, RequestId, Tid, TransferEvent, TransferId,
    UsageError, client, server,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{begin, txn};

/// One step of a conversation.
#[derive(Clone, Debug)]
enum Op {
    Upload {
        txn: u8,
        source: Source,
    },
    Download {
        source: Source,
        from: u64,
        upto: u64,
    },
    Load,
    Invalidate,
    Begin {
        txn: u8,
    },
    Vote {
        txn: u8,
    },
    Finish {
        txn: u8,
    },
    Commit {
        txn: u8,
    },
    Abort {
        txn: u8,
    },
    /// Cancels one of the requests.
    Cancel {
        request: usize,
    },
    /// The client aborts an upload.
    AbortUpload {
        request: usize,
    },
    /// The server aborts a download.
    AbortDownload {
        request: usize,
    },
    /// The server answers one of its requests with an error at once.
    Fail {
        request: usize,
    },
    /// The server answers the requests that wait.
    Answer,
    HoldSinks {
        client: bool,
    },
    ReleaseSinks,
    Steps(usize),
    Pass(Duration),
}

fn source() -> impl Strategy<Value = Source> {
    let fails_at = prop_oneof![3 => Just(None), 1 => (0u64..700).prop_map(Some)];
    (vec(any::<u8>(), 0..700), any::<bool>(), fails_at).prop_map(|(bytes, digest_at_end, fails_at)| Source {
        bytes,
        digest_at_end,
        fails_at,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let upto = prop_oneof![Just(u64::MAX), 0u64..800];
    prop_oneof![
        6 => (0u8..3, source()).prop_map(|(txn, source)| Op::Upload { txn, source }),
        6 => (source(), 0u64..300, upto).prop_map(|(source, from, upto)| Op::Download { source, from, upto }),
        2 => Just(Op::Load),
        1 => Just(Op::Invalidate),
        3 => (0u8..3).prop_map(|txn| Op::Begin { txn }),
        2 => (0u8..3).prop_map(|txn| Op::Vote { txn }),
        2 => (0u8..3).prop_map(|txn| Op::Finish { txn }),
        1 => (0u8..3).prop_map(|txn| Op::Commit { txn }),
        1 => (0u8..3).prop_map(|txn| Op::Abort { txn }),
        2 => any::<usize>().prop_map(|request| Op::Cancel { request }),
        1 => any::<usize>().prop_map(|request| Op::AbortUpload { request }),
        1 => any::<usize>().prop_map(|request| Op::AbortDownload { request }),
        1 => any::<usize>().prop_map(|request| Op::Fail { request }),
        4 => Just(Op::Answer),
        1 => any::<bool>().prop_map(|client| Op::HoldSinks { client }),
        2 => Just(Op::ReleaseSinks),
        8 => (1usize..12).prop_map(Op::Steps),
        1 => (0u64..40).prop_map(|seconds| Op::Pass(Duration::from_secs(seconds))),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u32..200, 1u64..300, 1u64..400, 1u32..5).prop_map(
        |(chunk, transfer_window, connection_window, transfers)| Limits {
            chunk,
            transfer_window,
            connection_window,
            transfers,
            ..Limits::default()
        },
    )
}

fn link() -> impl Strategy<Value = Link> {
    (0u64..30, vec(1usize..400, 1..6), 1usize..2000).prop_map(|(delay, fragments, capacity)| Link {
        delay: Duration::from_millis(delay),
        fragments,
        capacity,
    })
}

fn setting() -> impl Strategy<Value = PairConfig> {
    let style = || prop_oneof![Just(Style::Buffered), Just(Style::Splicing)];
    (limits(), limits(), style(), style(), link(), link()).prop_map(
        |(client, server, client_style, server_style, up, down)| PairConfig {
            client: Config { limits: client, ..Config::default() },
            server: Config { limits: server, ..Config::default() },
            client_style,
            server_style,
            up,
            down,
        },
    )
}

/// The applications of a client and a server, and what both have received.
struct World {
    pair: Pair,
    /// The requests of the client, and the number of answers to each.
    asked: BTreeMap<RequestId, usize>,
    uploads: BTreeMap<TransferId, Source>,
    downloads: BTreeMap<TransferId, Source>,
    /// Requests that the server has received and not answered.
    waiting: BTreeMap<RequestId, Request>,
    /// Uploads that the server answered before their end: it gets no more events of them.
    failed: BTreeSet<TransferId>,
    last_tid: u64,
}

impl World {
    fn new(setting: PairConfig) -> World {
        World {
            pair: Pair::connected(setting),
            asked: BTreeMap::new(),
            uploads: BTreeMap::new(),
            downloads: BTreeMap::new(),
            waiting: BTreeMap::new(),
            failed: BTreeSet::new(),
            last_tid: 0,
        }
    }

    /// Sends a request, if it is possible now.
    fn ask(&mut self, request: Request) -> Option<RequestId> {
        let id = self.pair.client.connection.request(request).ok()?;
        assert_eq!(self.asked.insert(id, 0), None);
        Some(id)
    }

    fn picked(&self, request: usize) -> Option<RequestId> {
        self.asked.keys().nth(request % self.asked.len().max(1)).copied()
    }

    fn happen(&mut self, op: Op) {
        match op {
            Op::Upload { txn: n, source } => {
                if let Ok(transfer) = self.pair.upload(txn(n), Oid(1), Tid::ZERO, source.clone()) {
                    self.asked.insert(transfer.into(), 0);
                    self.uploads.insert(transfer, source);
                }
            }
            Op::Download { source, from, upto } => {
                let blob = BlobId { oid: Oid(1), tid: Tid(1) };
                if let Some(id) = self.ask(Request::SendBlob { blob, from, upto }) {
                    self.downloads.insert(id.into(), Source { digest_at_end: false, ..source });
                }
            }
            Op::Load => drop(self.ask(Request::Load { oid: Oid(1) })),
            Op::Invalidate => {
                self.last_tid += 1;
                self.pair.server.connection.invalidate(Tid(self.last_tid), &[Oid(1)]).unwrap();
            }
            Op::Begin { txn } => drop(self.ask(begin(txn))),
            Op::Vote { txn: n } => drop(self.ask(Request::Vote { txn: txn(n) })),
            Op::Finish { txn: n } => drop(self.ask(Request::Finish { txn: txn(n) })),
            Op::Commit { txn: n } => drop(self.ask(Request::Commit { txn: txn(n) })),
            Op::Abort { txn: n } => drop(self.ask(Request::Abort { txn: txn(n) })),
            Op::Cancel { request } => {
                self.picked(request).map(|id| self.pair.client.connection.cancel(id));
            }
            Op::AbortUpload { request } => {
                let reason = RequestError::Failed { detail: "given up".into() };
                self.picked(request).map(|id| self.pair.client.connection.abort_blob(id.into(), reason));
            }
            Op::AbortDownload { request } => {
                let reason = RequestError::Failed { detail: "given up".into() };
                self.picked(request).map(|id| self.pair.server.connection.abort_blob(id.into(), reason));
            }
            Op::Fail { request } => {
                if let Some(id) = self.waiting.keys().nth(request % self.waiting.len().max(1)).copied() {
                    self.waiting.remove(&id);
                    self.failed.insert(id.into());
                    let _ = self.pair.server.connection.reply(id, Err(RequestError::Cancelled));
                }
            }
            Op::Answer => self.answer(),
            Op::HoldSinks { client: true } => self.pair.client.hold_sinks(),
            Op::HoldSinks { client: false } => self.pair.server.hold_sinks(),
            Op::ReleaseSinks => self.release(),
            Op::Steps(steps) => drop((0..steps).map(|_| self.pair.step()).collect::<Vec<_>>()),
            Op::Pass(time) => self.pair.advance(time),
        }
        self.receive();
    }

    fn release(&mut self) {
        self.pair.client.release_sinks();
        self.pair.server.release_sinks();
    }

    /// Both applications handle the events of their connections.
    fn receive(&mut self) {
        while let Some(event) = self.pair.server.event() {
            match event {
                server::Event::Request { id, request } => assert_eq!(self.waiting.insert(id, request), None),
                server::Event::Transfer(TransferEvent::Aborted { transfer, .. }) => {
                    assert!(
                        self.waiting.remove(&transfer.into()).is_some(),
                        "the connection has answered the request"
                    );
                }
                _ => {}
            }
        }
        while let Some(event) = self.pair.client.event() {
            let answered = match event {
                client::Event::Reply { id, .. } => id,
                client::Event::Transfer(
                    TransferEvent::Stopped { transfer, .. } | TransferEvent::Aborted { transfer, .. },
                ) => transfer.into(),
                _ => continue,
            };
            *self.asked.get_mut(&answered).unwrap() += 1;
        }
    }

    /// The server answers every request that it can answer.
    fn answer(&mut self) {
        for (id, request) in std::mem::take(&mut self.waiting) {
            let stopped =
                self.pair.server.sink(id.into()).is_some_and(|sink| matches!(sink.outcome, Some(Ok(_))));
            let connection = &mut self.pair.server.connection;
            let answered = match request {
                Request::StoreBlob { .. } if !stopped => {
                    self.waiting.insert(id, request);
                    continue;
                }
                Request::SendBlob { blob, from, upto } => {
                    let source = self.downloads[&TransferId::from(id)].clone();
                    let size = source.bytes.len() as u64;
                    match self.pair.serve(id.into(), source) {
                        Err(UsageError::BadRange(_)) => {
                            let error = RequestError::BadRange { blob, size, from, upto };
                            self.pair.server.connection.reply(id, Err(error))
                        }
                        served => served,
                    }
                }
                Request::Vote { .. } => connection.reply(id, Ok(Reply::Voted)),
                Request::Finish { .. } | Request::Commit { .. } => {
                    connection.reply(id, Ok(Reply::Finished { tid: Tid(1) }))
                }
                Request::Load { oid } => connection.reply(id, Err(RequestError::NoSuchObject { oid })),
                _ => connection.reply(id, Ok(Reply::Done)),
            };
            assert_eq!(answered, Ok(()));
        }
    }

    /// Lets both sides answer and store until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.release();
            self.pair.run();
            self.receive();
            self.answer();
        }
    }

    fn check(&self) {
        let Pair { client, server, .. } = &self.pair;
        assert_eq!((client.connection.error(), server.connection.error()), (None, None));
        assert!(self.asked.values().all(|answers| *answers == 1), "{:?}", self.asked);
        assert_eq!((client.connection.requests_in_flight(), server.connection.requests_in_flight()), (0, 0));
        for (transfers, sinks) in [(&self.uploads, true), (&self.downloads, false)] {
            for (id, source) in transfers {
                let sink = if sinks { server.sink(*id) } else { client.sink(*id) };
                let Some(sink) = sink else { continue };
                match sink.outcome.as_ref() {
                    None => assert!(sinks && self.failed.contains(id), "every transfer ends"),
                    Some(Ok(digest)) => {
                        let range = sink.from as usize..sink.end as usize;
                        assert_eq!(sink.bytes, source.bytes[range.clone()]);
                        assert_eq!(*digest, digest_of(&source.bytes));
                        assert!(source.fails_at.is_none_or(|at| range.is_empty() || at >= range.end as u64));
                    }
                    Some(Err(_)) => assert!(sink.bytes.len() as u64 <= sink.end - sink.from),
                }
            }
        }
    }
}

proptest! {
    /// Whatever happens in between, in any order.
    #[test]
    fn requests_are_answered_once_and_bytes_arrive_once(
        setting in setting(),
        ops in vec(op(), 0..60),
    ) {
        let mut world = World::new(setting);
        for op in ops {
            world.happen(op);
        }
        world.settle();
        world.check();

        // No credit was lost: blobs much larger than all windows still arrive, in both directions
        // at once.
        let large = Source::new(&[42; 5_000]);
        world.happen(Op::Abort { txn: 0 });
        world.happen(Op::Begin { txn: 9 });
        world.happen(Op::Upload { txn: 9, source: large.clone() });
        world.happen(Op::Download { source: large, from: 0, upto: u64::MAX });
        world.settle();
        world.check();
        let last = *world.downloads.keys().last().unwrap();
        prop_assert!(world.pair.client.sink(last).is_some_and(|sink| sink.bytes.len() == 5_000));

        // Nothing is left over that would keep the connection from finishing.
        for n in [0, 1, 2, 9] {
            world.happen(Op::Abort { txn: n });
        }
        world.settle();
        world.pair.client.connection.goodbye().unwrap();
        world.pair.run();
        prop_assert!(world.pair.client.connection.is_finished() && world.pair.server.connection.is_finished());
        prop_assert_eq!(world.pair.server.connection.transactions().count(), 0);
    }

    #[test]
    fn the_same_calls_produce_the_same_conversation(setting in setting(), ops in vec(op(), 0..40)) {
        let run = || {
            let mut world = World::new(setting.clone());
            ops.iter().cloned().for_each(|op| world.happen(op));
            format!("{:?}", world.pair)
        };
        prop_assert_eq!(run(), run());
    }
}
