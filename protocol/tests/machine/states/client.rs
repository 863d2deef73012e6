//! The states of a client: of its connection, of each request that waits for its answer, of a
//! download, of an upload.

use blobferry_protocol::client::{Connection, Event};
use blobferry_protocol::{
    BlobId, Digest, Limits, Message, Oid, PeerError, Refusal, Reply, Request, RequestError, RequestId, Tid,
    Time,
};

use super::{Machine, Setup, State, TXN, of_transfer, variant};
use crate::receiving::{abort, arrives, start, stop};
use crate::support::{self, begin, events, receive, said, store};

impl Machine for Connection {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, PeerError> {
        self.handle_control(Time::ZERO, bytes)
    }

    fn happened(&mut self, _: RequestId) -> Vec<String> {
        let events = events(self).into_iter().map(|event| match event {
            Event::Connected(_) => "connected".into(),
            Event::Refused(_) => "refused".into(),
            Event::Reply { .. } => "answered".into(),
            Event::Invalidate { .. } => "invalidate".into(),
            Event::Transfer(event) => of_transfer(&event),
            Event::Goodbye => "goodbye".into(),
        });
        let mut happened: Vec<String> = events.collect();
        happened.extend(said(self).into_iter().filter_map(|message| match message {
            Message::Pong { .. } => Some("pong".into()),
            Message::Credit { .. } | Message::ConnectionCredit { .. } | Message::BlobChunk { .. } => None,
            other => Some(variant(&other)),
        }));
        happened
    }

    fn seen(&self) -> (String, String) {
        let phase = self.phase(TXN).map_or("none".into(), |phase| format!("{phase:?}").to_lowercase());
        let others = (self.requests_in_flight(), self.is_closing(), self.is_connected());
        (phase, format!("{others:?} {:?}", self.expect()))
    }
}

type Client = Setup<Connection>;

fn connected() -> Client {
    connected_to(Limits::default())
}

fn connected_to(server: Limits) -> Client {
    let connection = support::client_of(support::wide(), server);
    Setup { connection, next: 1, about: RequestId(1), offset: 0 }
}

fn calling() -> Client {
    let mut connection = Connection::new(Time::ZERO, support::wide(), b"key");
    said(&mut connection);
    Setup { connection, next: 1, about: RequestId(1), offset: 0 }
}

impl Client {
    /// Sends a request, which becomes the one of this state.
    fn ask(mut self, request: Request) -> Client {
        self.about = self.connection.request(request).unwrap();
        self
    }

    fn answer(self, result: Result<Reply, RequestError>) -> Client {
        let id = self.about;
        self.receive(&Message::Reply { id, result })
    }

    fn receive(mut self, message: &Message) -> Client {
        receive(&mut self.connection, message);
        self
    }

    fn cancel(mut self) -> Client {
        self.connection.cancel(self.about).unwrap();
        self
    }

    /// Receives `len` bytes of the download.
    fn gets(mut self, len: u32) -> Client {
        arrives(&mut self.connection, self.about.into(), self.offset, len);
        self.offset += u64::from(len);
        self
    }

    fn upload(mut self) -> Client {
        let transfer =
            self.connection.upload(TXN, Oid(1), Tid::ZERO, Vec::new(), 1000, Some(Digest([0; 32])));
        self.about = transfer.unwrap().into();
        self
    }

    /// Takes all messages that wait to be sent.
    fn said(mut self) -> Client {
        said(&mut self.connection);
        self
    }

    /// Lets the timeout of the transfer pass.
    fn stalls(mut self) -> Client {
        said(&mut self.connection);
        let at = Time(support::wide().transfer_timeout);
        self.connection.handle_timeout(at).unwrap();
        self.connection.handle_timeout(at).unwrap();
        self
    }
}

fn open() -> Client {
    connected().ask(begin(1)).answer(Ok(Reply::Done))
}

/// Returns a client that uploads a blob, part of which the server has received.
fn uploading() -> Client {
    let server = Limits { transfer_window: 500, ..Limits::default() };
    connected_to(server).ask(begin(1)).answer(Ok(Reply::Done)).upload().said()
}

fn voted() -> Client {
    open().ask(Request::Vote { txn: TXN }).answer(Ok(Reply::Voted))
}

fn wanted() -> Client {
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    connected().ask(Request::SendBlob { blob, from: 0, upto: u64::MAX })
}

fn receiving() -> Client {
    let wanted = wanted();
    let start = start(wanted.about.into(), 1000);
    wanted.receive(&start)
}

fn arrived() -> Client {
    receiving().gets(1000)
}

/// Returns a state that accepts only these messages.
fn bare(name: &'static str, takes: &str, setup: fn() -> Client) -> State<Connection> {
    State { name, takes: takes.to_owned(), setup }
}

/// Returns a state of a connected client: it accepts what every such state does, and these
/// messages.
fn state(name: &'static str, takes: &str, setup: fn() -> Client) -> State<Connection> {
    bare(name, &format!("Invalidate ConnectionCredit Ping Pong Goodbye {takes}"), setup)
}

pub(super) fn states() -> Vec<State<Connection>> {
    let mut states = of_connections();
    states.extend(of_requests());
    states.extend(of_transfers());
    states
}

fn of_connections() -> Vec<State<Connection>> {
    vec![
        bare("a connection that waits for its welcome", "Welcome", calling),
        bare("one that was refused", "", || {
            let mut setup = calling();
            support::refuses(&mut setup.connection, &Message::Refuse(Refusal::Full));
            setup
        }),
        state("one that is connected, and has asked for nothing", "", connected),
        state("one whose server has said goodbye", "", || connected().receive(&Message::Goodbye)),
        state("one that has said goodbye", "", || {
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

fn of_requests() -> Vec<State<Connection>> {
    vec![
        state("Begin, asked", "=Done =error", || connected().ask(begin(1))),
        state("Store, asked", "=Done =error", || open().ask(store(1))),
        state("StoreShared, asked", "=Done =error", || {
            let (txn, oid, base, digest) = (TXN, Oid(1), Tid::ZERO, Digest([0; 32]));
            let name = "file".to_owned();
            open().ask(Request::StoreShared { txn, oid, base, data: Vec::new(), name, size: 1, digest })
        }),
        state("Delete, asked", "=Done =error", || {
            open().ask(Request::Delete { txn: TXN, oid: Oid(1), base: Tid::ZERO })
        }),
        state("Vote, asked", "=Voted =Conflicts =error", || open().ask(Request::Vote { txn: TXN })),
        state("Finish, asked", "=Finished =error", || voted().ask(Request::Finish { txn: TXN })),
        state("Commit, asked", "=Finished =Conflicts =error", || open().ask(Request::Commit { txn: TXN })),
        state("Abort, asked", "=Done =error", || open().ask(Request::Abort { txn: TXN })),
        state("Attach, asked", "=Attached =error", || connected().ask(Request::Attach { txn: TXN })),
        state("Outcome, asked", "=Outcome =error", || connected().ask(Request::Outcome { txn: TXN })),
        state("Load, asked", "=Revision =error", || connected().ask(Request::Load { oid: Oid(1) })),
        state("LoadBefore, asked", "=RevisionBefore =error", || {
            connected().ask(Request::LoadBefore { oid: Oid(1), before: Tid(1) })
        }),
        state("LoadSerial, asked", "=Revision =error", || {
            connected().ask(Request::LoadSerial { oid: Oid(1), tid: Tid(1) })
        }),
        state("History, asked", "=History =error", || {
            connected().ask(Request::History { oid: Oid(1), limit: 1 })
        }),
        state("NewOids, asked", "=Oids =error", || connected().ask(Request::NewOids { count: 1 })),
        state("Status, asked", "=Status =error", || connected().ask(Request::Status)),
        state("Pack, asked", "=Packed =error", || connected().ask(Request::Pack { before: Tid(1) })),
        state("Status, cancelled", "=Status =error", || connected().ask(Request::Status).cancel()),
        state("Status, answered", "", || connected().ask(Request::Status).answer(Ok(Reply::Status(vec![])))),
        state("Store, asked in a transaction that is given up", "=Done =error", || {
            let setup = open().ask(store(1));
            let about = setup.about;
            Setup { about, ..setup.ask(Request::Abort { txn: TXN }) }
        }),
    ]
}

fn of_transfers() -> Vec<State<Connection>> {
    vec![
        state("SendBlob, asked", "=error BlobStart", wanted),
        state("SendBlob, cancelled before it began", "=error BlobStart", || wanted().cancel()),
        state("a download that has begun", "BlobChunk BlobAbort", receiving),
        state("one that is halfway", "BlobChunk BlobAbort", || receiving().gets(500)),
        state("one that has arrived", "BlobStop BlobAbort", arrived),
        state("one that was stopped", "", || {
            let arrived = arrived();
            let stop = stop(arrived.about.into());
            arrived.receive(&stop)
        }),
        state("one that the server has aborted", "", || {
            let receiving = receiving();
            let abort = abort(receiving.about.into());
            receiving.receive(&abort)
        }),
        state("one that was cancelled halfway", "BlobChunk BlobAbort", || receiving().gets(500).cancel()),
        state("one that has got nowhere and was given up", "BlobChunk BlobAbort", || {
            receiving().gets(500).stalls()
        }),
        state("StoreBlob, of which a part was sent", "=error Credit", uploading),
        state("StoreBlob, of which all was sent", "=Done =error Credit", || open().upload().said()),
        state("StoreBlob, aborted by the client", "=error Credit", || {
            let mut setup = uploading();
            setup.connection.abort_blob(setup.about.into(), RequestError::Cancelled).unwrap();
            setup
        }),
        state("StoreBlob, cancelled by the client", "=error Credit", || uploading().cancel()),
        state("StoreBlob, whose transaction is given up", "=error Credit", || {
            let setup = uploading();
            let about = setup.about;
            Setup { about, ..setup.ask(Request::Abort { txn: TXN }) }
        }),
        state("StoreBlob, given up as it got nowhere", "=error Credit", || uploading().stalls()),
        state("StoreBlob, answered", "Credit", || open().upload().said().answer(Ok(Reply::Done))),
        state("StoreBlob, refused while it was sent", "Credit", || {
            uploading().answer(Err(RequestError::Cancelled))
        }),
    ]
}
