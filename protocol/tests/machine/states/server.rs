//! The states of a server: of its connection, of a transaction, of an upload, of a download.

use blobferry_protocol::server::{Connection, Event};
use blobferry_protocol::{
    BlobId, Conflict, Digest, Limits, Message, Oid, PeerError, Phase, Refusal, Reply, Request, RequestError,
    RequestId, Tid, Time,
};

use super::{Machine, Setup, State, TXN, of_transfer, variant};
use crate::receiving::{abort, arrives, start, stop};
use crate::support::{self, begin, events, receive, said, store, store_blob};

impl Machine for Connection {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, PeerError> {
        self.handle_control(Time::ZERO, bytes)
    }

    fn happened(&mut self, own: RequestId) -> Vec<String> {
        let events = events(self).into_iter().map(|event| match event {
            Event::Hello { .. } => "hello".into(),
            Event::Request { id, .. } if id == own => "passed".into(),
            Event::Request { request, .. } => format!("passed: {}", variant(&request)),
            Event::Cancelled { .. } => "cancelled".into(),
            Event::Abandoned { .. } => "abandoned".into(),
            Event::Transfer(event) => of_transfer(&event),
            Event::SendingAborted { .. } => "sending ends".into(),
            Event::Goodbye => "goodbye".into(),
        });
        let mut happened: Vec<String> = events.collect();
        happened.extend(said(self).into_iter().filter_map(|message| match message {
            Message::Reply { id, result: Err(error) } if id == own => {
                Some(format!("no: {}", variant(&error)))
            }
            Message::Reply { result: Err(error), .. } => Some(format!("answered: {}", variant(&error))),
            Message::Refuse(_) => Some("refused".into()),
            Message::Pong { .. } => Some("pong".into()),
            // The connection sends these by itself.
            Message::Credit { .. } | Message::ConnectionCredit { .. } | Message::BlobChunk { .. } => None,
            other => Some(variant(&other)),
        }));
        happened
    }

    fn seen(&self) -> (String, String) {
        let phase = self.transactions().find(|(txn, _)| *txn == TXN).map(|(_, phase)| phase);
        let phase = phase.map_or("none".into(), |phase: Phase| format!("{phase:?}").to_lowercase());
        let others = (self.transactions().count(), self.requests_in_flight(), self.is_closing());
        (phase, format!("{others:?} {} {:?}", self.is_connected(), self.expect()))
    }
}

type Server = Setup<Connection>;

/// Returns a connection without requests.
fn on(connection: Connection) -> Server {
    Setup { connection, next: 1, about: RequestId(1), offset: 0 }
}

fn connected() -> Server {
    on(support::server_for(support::wide(), Limits::default()))
}

/// Returns a server that has received a hello.
fn greeted() -> Server {
    let mut connection = Connection::new(Time::ZERO, support::wide());
    receive(&mut connection, &support::hello(Limits::default()));
    on(connection)
}

impl Server {
    /// Receives a request, which becomes the one of this state.
    fn ask(mut self, request: Request) -> Server {
        receive(&mut self.connection, &support::request(self.next, request));
        self.about = RequestId(self.next);
        self.next += 1;
        self
    }

    /// Answers the request of this state.
    fn answer(mut self, result: Result<Reply, RequestError>) -> Server {
        self.connection.reply(self.about, result).unwrap();
        self
    }

    fn receive(mut self, message: &Message) -> Server {
        receive(&mut self.connection, message);
        self
    }

    fn done(self) -> Server {
        self.answer(Ok(Reply::Done))
    }

    fn fails(self) -> Server {
        self.answer(Err(RequestError::NoSpace { detail: "full".into() }))
    }

    fn goodbye(self) -> Server {
        self.receive(&Message::Goodbye)
    }

    /// Receives `len` bytes of the upload.
    fn gets(mut self, len: u32) -> Server {
        arrives(&mut self.connection, self.about.into(), self.offset, len);
        self.offset += u64::from(len);
        self
    }

    fn cancel(self) -> Server {
        let id = self.about;
        self.receive(&Message::Cancel { id })
    }

    /// Starts to send the requested blob.
    fn sends(mut self) -> Server {
        self.connection.start_blob(self.about.into(), 1000, Digest([0; 32])).unwrap();
        self
    }
}

fn open() -> Server {
    connected().ask(begin(1)).done()
}

fn storing() -> Server {
    open().ask(store(1))
}

fn doomed() -> Server {
    storing().fails()
}

fn voting() -> Server {
    open().ask(Request::Vote { txn: TXN })
}

fn voted() -> Server {
    voting().answer(Ok(Reply::Voted))
}

fn finishing() -> Server {
    voted().ask(Request::Finish { txn: TXN })
}

fn conflicts() -> Reply {
    Reply::Conflicts(vec![Conflict { oid: Oid(1), committed: Tid(2), base: Tid(1) }])
}

fn requested() -> Server {
    open().ask(store_blob(1))
}

fn uploading() -> Server {
    let requested = requested();
    let start = start(requested.about.into(), 1000);
    requested.receive(&start)
}

fn arrived() -> Server {
    uploading().gets(1000)
}

fn stopped() -> Server {
    let arrived = arrived();
    let stop = stop(arrived.about.into());
    arrived.receive(&stop)
}

fn wanted() -> Server {
    wanted_with(500)
}

/// Returns a download to a client with this window.
fn wanted_with(transfer_window: u64) -> Server {
    let client = Limits { transfer_window, ..Limits::default() };
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    on(support::server_for(support::wide(), client)).ask(Request::SendBlob { blob, from: 0, upto: u64::MAX })
}

const READS: &str = "Outcome Load LoadBefore LoadSerial History NewOids SendBlob Status Pack";
/// What every connected state accepts. (`Cancel` is for a request that has ended already.)
const ALWAYS: &str = "ConnectionCredit Cancel Ping Pong Goodbye";
const STORES: &str = "Store StoreBlob StoreShared Delete";

/// Returns a state that accepts only these messages.
fn bare(name: &'static str, takes: &str, setup: fn() -> Server) -> State<Connection> {
    State { name, takes: takes.to_owned(), setup }
}

/// Returns a state of a connected server: it accepts what every such state does, reads, and these
/// messages.
fn state(name: &'static str, takes: &str, setup: fn() -> Server) -> State<Connection> {
    bare(name, &format!("{ALWAYS} {READS} {takes}"), setup)
}

/// Returns such a state after a goodbye.
fn closing(name: &'static str, takes: &str, setup: fn() -> Server) -> State<Connection> {
    bare(name, &format!("{ALWAYS} Outcome {takes}"), setup)
}

pub(super) fn states() -> Vec<State<Connection>> {
    let mut states = of_connections();
    states.extend(of_transactions());
    states.extend(of_uploads());
    states.extend(of_downloads());
    states
}

fn of_connections() -> Vec<State<Connection>> {
    vec![
        bare("a connection that waits for a hello", "Hello", || {
            on(Connection::new(Time::ZERO, support::wide()))
        }),
        bare("one that has said hello and is not welcome yet", "", greeted),
        bare("one that was refused", "", || {
            let mut setup = greeted();
            setup.connection.refuse(Refusal::Full).unwrap();
            setup
        }),
        bare("one that speaks no version in common", "", || {
            let mut setup = on(Connection::new(Time::ZERO, support::wide()));
            let Message::Hello(mut hello) = support::hello(Limits::default()) else { unreachable!() };
            (hello.version_min, hello.version_max) = (7, 9);
            receive(&mut setup.connection, &Message::Hello(hello));
            setup
        }),
        state("one that is connected", "Begin Abort Attach", connected),
        closing("one whose client has said goodbye", "Abort", || connected().goodbye()),
        closing("one that receives a goodbye", "Abort", || {
            let mut setup = connected();
            setup.connection.goodbye().unwrap();
            setup
        }),
        bare("one that is dead", "", || {
            let mut setup = connected();
            support::refuses(&mut setup.connection, &support::hello(Limits::default()));
            setup
        }),
    ]
}

fn of_transactions() -> Vec<State<Connection>> {
    let votes = "Vote Commit Abort";
    let open_takes = format!("{STORES} {votes}");
    let over = "Begin Abort Attach";
    vec![
        state("a transaction that is about to begin", &open_takes, || connected().ask(begin(1))),
        state("one that could not begin", votes, || connected().ask(begin(1)).fails()),
        state("one that is open", &open_takes, open),
        state("one with a store that is not answered", &open_takes, storing),
        state("one from which something is missing", votes, doomed),
        state("one whose vote waits for a store", "Abort", || storing().ask(Request::Vote { txn: TXN })),
        state("one whose commit waits for a store", "", || storing().ask(Request::Commit { txn: TXN })),
        state("one that is voted on", "Abort", voting),
        state("one whose vote has found conflicts", &open_takes, || voting().answer(Ok(conflicts()))),
        state("one whose vote has failed", over, || voting().fails()),
        state("one that is voted for", "Finish Abort", voted),
        state("one that is being finished", "", finishing),
        state("one that is being committed", "", || open().ask(Request::Commit { txn: TXN })),
        state("one that is committed", over, || finishing().answer(Ok(Reply::Finished { tid: Tid(1) }))),
        state("one that is given up", over, || open().ask(Request::Abort { txn: TXN })),
        state("one that was given up", over, || open().ask(Request::Abort { txn: TXN }).done()),
        state("one that is about to be attached", &open_takes, || {
            connected().ask(Request::Attach { txn: TXN })
        }),
        state("one that could not be attached", over, || {
            connected().ask(Request::Attach { txn: TXN }).fails()
        }),
        closing("one that is open on a connection that comes to its end", votes, || open().goodbye()),
        closing("one that is voted for, the same", "Finish Abort", || voted().goodbye()),
    ]
}

fn of_uploads() -> Vec<State<Connection>> {
    let open = format!("{STORES} Vote Commit Abort");
    let with = |more: &str| format!("{open} {more}");
    let doomed = |more: &str| format!("Vote Commit Abort {more}");
    vec![
        state("an upload that has not begun", &with("BlobStart"), requested),
        state("one that has", &with("BlobChunk BlobAbort"), uploading),
        state("one that is halfway", &with("BlobChunk BlobAbort"), || uploading().gets(500)),
        state("one that has arrived", &with("BlobStop BlobAbort"), arrived),
        state("one that was stopped", &open, stopped),
        state("one that is stored and answered", &open, || {
            let mut setup = stopped();
            setup.connection.stored(setup.about.into(), 1000).unwrap();
            setup.done()
        }),
        state("one that its client has aborted", &doomed(""), || {
            let uploading = uploading();
            let abort = abort(uploading.about.into());
            uploading.receive(&abort)
        }),
        state("one whose sink has failed", &with("BlobChunk BlobAbort"), || {
            let mut setup = uploading().gets(500);
            setup.connection.discard(setup.about.into());
            setup
        }),
        state("one that was refused before it began", &doomed("BlobStart"), || requested().fails()),
        state("one that was refused halfway", &doomed("BlobChunk BlobAbort"), || {
            uploading().gets(500).fails()
        }),
        state("one whose transaction was given up halfway", "Begin Abort Attach BlobChunk BlobAbort", || {
            let setup = uploading().gets(500);
            let about = setup.about;
            Setup { about, ..setup.ask(Request::Abort { txn: TXN }).done() }
        }),
        state("one of no transaction", "Begin Abort Attach BlobStart", || connected().ask(store_blob(1))),
    ]
}

fn of_downloads() -> Vec<State<Connection>> {
    let free = |more: &str| format!("Begin Abort Attach {more}");
    vec![
        state("a download that is not answered", &free(""), wanted),
        state("one that was cancelled before that", &free(""), || wanted().cancel()),
        state("one that is sent in part", &free("Credit"), || wanted().sends()),
        state("one that was cancelled while it was sent", &free("Credit"), || wanted().sends().cancel()),
        state("one that was cancelled, and sent all the same", &free("Credit"), || wanted().cancel().sends()),
        state("one that is sent to its end", &free("Credit"), || wanted_with(1000).sends()),
        state("one that was refused", &free(""), || wanted().fails()),
    ]
}
