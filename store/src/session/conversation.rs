//! One connection's conversation: what the machine hears goes to the store, what the store says goes to the machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use blobferry_cache::carry::{Body, Endpoint, Inlets, Outlets, Report};
use blobferry_cache::workers::Lane;
use blobferry_protocol::{
    PeerError, Phase, Reply, Request, RequestError, RequestId, Slice, Time, TransferEvent, TransferId, TxnId,
    buffered, server,
};
use bytes::Bytes;

use super::decide;
use super::keep::{Hold, Part};
use super::mailbox::{Mailbox, News};
use super::proofs::Proof;
use super::reads::{self, Opened};
use super::service::{Membership, Service};
use super::upload::Upload;
use crate::Store;

/// Reads of the store that run at once for one connection.
const READS: usize = 32;
/// Bytes of answers that may wait for the peer before no more of its requests are read.
const BACKLOG: usize = 4 << 20;
/// Bytes of records on their way into the store before no more are read.
const HELD: u64 = 8 << 20;
/// Bytes of records that wait for their blobs. To stop reading would not help: the blobs have to be read.
const HELD_FOR_BLOBS: u64 = 64 << 20;

/// One connection of a server, without its socket. Dropped, it aborts the transactions that are open on it.
pub struct Session {
    connection: server::Connection,
    state: State,
}

struct State {
    service: Service,
    mailbox: Arc<Mailbox>,
    membership: Option<Membership>,
    inlets: Inlets,
    outlets: Outlets,
    /// The blobs among what leaves that are sent as a whole, and what is known when that is done.
    whole: BTreeMap<TransferId, Option<Proof>>,
    /// The transactions that were begun here or attached, some of which are over. What others have begun is none of its
    /// business, whoever knows the name.
    begun: BTreeMap<TxnId, Arc<Hold>>,
    /// The client goes on elsewhere.
    replaced: bool,
    /// What changes a transaction, in the order of its requests.
    lanes: BTreeMap<TxnId, Lane>,
    /// Reads that wait for their turn.
    reads: VecDeque<(RequestId, Request)>,
    /// Reads that run.
    reading: BTreeSet<RequestId>,
    /// Those of them whose answer is not wanted any more.
    cancelled: BTreeSet<RequestId>,
    /// Answers that wait because the peer does not read those before them.
    late: VecDeque<News>,
    /// Bytes of answers that may wait for the peer before no more are added.
    enough: usize,
    /// Records on their way into the store: how long they are.
    held: BTreeMap<RequestId, u64>,
    /// The same of those that wait for their blobs.
    held_for_blobs: BTreeMap<RequestId, u64>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?})", self.connection)
    }
}

impl Session {
    /// A conversation that waits for a client's hello. `wake` is called from any thread when there is something to
    /// send or the end has come nearer: drive the endpoint then.
    #[must_use]
    pub fn new(service: &Service, now: Time, wake: impl Fn() + Send + Sync + 'static) -> Session {
        let mailbox = Mailbox::new(Box::new(wake));
        let post = mailbox.clone();
        let report = Arc::new(move |report| post.post(News::Inlet(report)));
        let state = State {
            inlets: Inlets::new(service.workers(), report),
            service: service.clone(),
            mailbox,
            membership: None,
            outlets: Outlets::default(),
            whole: BTreeMap::new(),
            begun: BTreeMap::new(),
            replaced: false,
            lanes: BTreeMap::new(),
            reads: VecDeque::new(),
            reading: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            late: VecDeque::new(),
            enough: BACKLOG.min(service.config().connection.limits.control_queue as usize / 2),
            held: BTreeMap::new(),
            held_for_blobs: BTreeMap::new(),
        };
        Session { connection: server::Connection::new(now, service.config().connection), state }
    }
}

impl Endpoint for Session {
    fn transmit(&mut self, now: Time, out: &mut Vec<u8>, enough: usize, lend: bool) -> Option<Body> {
        self.catch_up();
        let State { outlets, service, whole, .. } = &mut self.state;
        let mut lent = None;
        buffered::transmit(&mut self.connection, now, out, enough, |slice, into| {
            lent = if lend { outlets.lend(slice) } else { None };
            let read = if lent.is_some() { Ok(()) } else { outlets.read(slice, into) };
            match &read {
                Ok(()) => drop(service.counters().bytes_sent.add(slice.len)),
                Err(error) => {
                    service.counters().damage(error);
                    whole.remove(&slice.transfer);
                }
            }
            read
        });
        for drained in self.state.outlets.take_drained() {
            self.state.outlets.remove(drained.transfer);
            let whole = self.state.whole.remove(&drained.transfer);
            self.state.count_sent(whole.is_some());
            whole.flatten().into_iter().for_each(|proof| self.state.service.proofs().add(proof));
        }
        lent
    }

    fn not_moved(&mut self, transfer: TransferId, reason: RequestError) {
        self.state.service.counters().damage(&reason);
        self.state.outlets.remove(transfer);
        self.state.whole.remove(&transfer);
        // Over only if the client does not want it any more.
        let _ = self.connection.abort_blob(transfer, reason);
    }

    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError> {
        let Session { connection, state } = self;
        let on_payload = |state: &mut State, slice: Slice, at| state.inlets.payload(slice, bytes.slice(at));
        let received = buffered::receive(connection, now, &bytes, state, State::event, on_payload);
        state.read_on(connection);
        received
    }

    fn wants_input(&self) -> bool {
        self.connection.backlog() < BACKLOG && self.state.held.values().sum::<u64>() < HELD
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.connection.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError> {
        let handled = self.connection.handle_timeout(now);
        self.state.events(&mut self.connection);
        handled
    }

    fn catch_up(&mut self) {
        let late = std::mem::take(&mut self.state.late);
        for news in late.into_iter().chain(self.state.mailbox.take()) {
            // Who reads slowly gets its answers later. Commits must be told before answers that show them.
            if matches!(news, News::Reply { .. }) && self.connection.backlog() >= self.state.enough {
                self.state.late.push_back(news);
                continue;
            }
            self.state.news(&mut self.connection, news);
            // An answer may let a vote go that has waited for it.
            self.state.events(&mut self.connection);
        }
        self.state.read_on(&self.connection);
        if self.state.service.is_stopping() {
            // One that is not connected yet is refused when it says hello.
            let _ = self.connection.goodbye();
        }
    }

    fn error(&self) -> Option<PeerError> {
        let replaced = self.state.replaced.then_some(PeerError::Replaced);
        self.connection.error().cloned().or(replaced)
    }

    fn is_finished(&self) -> bool {
        self.connection.is_finished()
    }
}

impl State {
    /// Takes the events that wait.
    fn events(&mut self, connection: &mut server::Connection) {
        while let Some(event) = connection.poll_event() {
            self.event(connection, event);
        }
    }

    fn event(&mut self, connection: &mut server::Connection, event: server::Event) {
        match event {
            server::Event::Hello { .. } => self.greet(connection),
            server::Event::Request { id, request } => {
                self.service.counters().requests.add(1);
                self.request(connection, id, request);
            }
            server::Event::Cancelled { id } => {
                // What only reads need not be answered in full. Everything else is done when it is done.
                if self.reading.contains(&id) {
                    self.cancelled.insert(id);
                } else if let Some(at) = self.reads.iter().position(|(waits, _)| *waits == id) {
                    self.reads.remove(at);
                    let _ = connection.reply(id, Err(RequestError::Cancelled));
                }
            }
            server::Event::Abandoned { txn } => self.abort(txn, || {}),
            server::Event::Transfer(event) => {
                if let TransferEvent::Aborted { transfer, .. } = &event {
                    self.held_for_blobs.remove(&(*transfer).into());
                }
                self.inlets.event(event);
            }
            server::Event::SendingAborted { transfer } => {
                self.outlets.remove(transfer);
                self.whole.remove(&transfer);
            }
            server::Event::Goodbye => {}
        }
    }

    /// First the client is made to hear of every commit, then it is told up to where it knows: none is missed.
    fn greet(&mut self, connection: &mut server::Connection) {
        // The machine has just said that it waits for this.
        let _ = match self.service.admit(&self.mailbox) {
            Ok((membership, last)) => {
                self.membership = Some(membership);
                connection.welcome(last)
            }
            Err(refusal) => connection.refuse(refusal),
        };
    }

    fn news(&mut self, connection: &mut server::Connection, news: News) {
        match news {
            News::Reply { id, result } => {
                self.held.remove(&id);
                self.held_for_blobs.remove(&id);
                self.reading.remove(&id);
                self.cancelled.remove(&id);
                // A request that was answered by the machine itself meanwhile needs no other answer.
                let _ = connection.reply(id, result);
            }
            News::Opened { id, opened } => self.opened(connection, id, opened),
            News::Attached { id, attached } => {
                let reply = attached.map(|hold| {
                    let reply = hold.reply();
                    self.begun(connection, hold);
                    reply
                });
                let _ = connection.reply(id, reply);
            }
            News::Replaced => self.replaced = true,
            News::Inlet(Report::Stored { transfer, upto }) => {
                // The transfer may be over meanwhile.
                let _ = connection.stored(transfer, upto);
            }
            News::Inlet(Report::Failed { transfer }) => {
                self.inlets.remove(transfer);
                connection.discard(transfer);
            }
            News::Committed { tid, oids } => {
                // A connection that is dead needs not know.
                let _ = connection.invalidate(tid, &oids);
            }
        }
    }

    /// The lane of a transaction.
    fn lane(&mut self, txn: TxnId) -> Lane {
        self.lanes.entry(txn).or_insert_with(|| Lane::new(self.service.workers())).clone()
    }

    /// The lane of a transaction that needs it for the last time.
    fn last_lane(&mut self, txn: TxnId) -> Lane {
        self.lanes.remove(&txn).unwrap_or_else(|| Lane::new(self.service.workers()))
    }

    /// A transaction was begun here, or attached.
    fn begun(&mut self, connection: &server::Connection, hold: Arc<Hold>) {
        self.begun.insert(hold.txn(), hold);
        // A vote that fails leaves its lane, too.
        let most = 2 * self.service.config().connection.limits.transactions as usize;
        if self.begun.len().max(self.lanes.len()) > most {
            let open: BTreeSet<TxnId> = connection.transactions().map(|(txn, _)| txn).collect();
            self.lanes.retain(|txn, _| open.contains(txn));
            self.begun.retain(|txn, hold| {
                let open = open.contains(txn);
                if !open {
                    hold.over();
                }
                open
            });
        }
    }

    /// A request that puts something into a transaction has arrived: what is kept of that, should the connection be
    /// lost. `None` where the transaction could not begin.
    fn arrived(&self, txn: TxnId, id: RequestId) -> Option<Arc<Hold>> {
        let hold = self.begun.get(&txn)?.clone();
        hold.arrived(id);
        Some(hold)
    }

    /// Does something that puts into a transaction, when everything that was asked of it before is done.
    fn put(
        &mut self,
        txn: TxnId,
        id: RequestId,
        put: impl FnOnce(&dyn Store) -> Result<(), RequestError> + Send + 'static,
    ) {
        let (store, mailbox, hold) =
            (self.service.store().clone(), self.mailbox.clone(), self.arrived(txn, id));
        self.lane(txn).run(move || {
            let put = put(&*store);
            if let (Ok(()), Some(hold)) = (&put, &hold) {
                hold.done(id);
            }
            mailbox.reply(id, put.map(|()| Reply::Done));
        });
    }

    /// Aborts a transaction, if it is here or on no connection, when everything that was asked of it before is done.
    fn abort(&mut self, txn: TxnId, then: impl FnOnce() + Send + 'static) {
        let hold = self.begun.remove(&txn);
        hold.iter().for_each(|hold| hold.over());
        let service = self.service.clone();
        self.last_lane(txn).run(move || {
            match hold {
                Some(_) => service.store().abort(txn),
                None => service.keeper().abort(txn),
            }
            then();
        });
    }

    fn request(&mut self, connection: &mut server::Connection, id: RequestId, request: Request) {
        let (store, mailbox) = (self.service.store().clone(), self.mailbox.clone());
        match request {
            Request::Begin { txn, meta } => {
                let begun = store.begin(txn, meta);
                if begun.is_ok() {
                    let hold = self.service.keeper().hold(txn, &self.mailbox);
                    self.begun(connection, hold);
                }
                let _ = connection.reply(id, begun.map(|()| Reply::Done));
            }
            Request::Attach { txn } => self.service.keeper().attach(txn, id, &self.mailbox),
            Request::Store { txn, oid, base, data } => {
                self.held.insert(id, data.len() as u64);
                self.put(txn, id, move |store| store.store(txn, oid, base, data));
            }
            Request::Delete { txn, oid, base } => {
                self.put(txn, id, move |store| store.delete(txn, oid, base));
            }
            Request::StoreShared { txn, oid, base, data, name, size, digest } => {
                self.held.insert(id, data.len() as u64);
                self.put(txn, id, move |store| store.store_shared(txn, oid, base, data, &name, size, digest));
            }
            Request::StoreBlob { txn, oid, base, data } => {
                let actual = data.len() as u64 + self.held_for_blobs.values().sum::<u64>();
                if actual > HELD_FOR_BLOBS {
                    let what = "bytes of records that wait for their blobs".to_owned();
                    let _ = connection
                        .reply(id, Err(RequestError::Limit { what, limit: HELD_FOR_BLOBS, actual }));
                    return;
                }
                self.held_for_blobs.insert(id, data.len() as u64);
                let (service, hold) = (self.service.clone(), self.arrived(txn, id));
                let part = hold.as_ref().and_then(|hold| hold.take_part(oid));
                let part = part.map(|part| Part { request: id, ..part });
                let upload = Upload { service, mailbox, hold, id, txn, oid, base, data, part };
                self.inlets.expect(id.into(), Box::new(upload));
            }
            Request::Vote { txn } => self.lane(txn).run(move || decide::vote(&store, mailbox, id, txn)),
            Request::Finish { txn } => {
                self.begun.get(&txn).into_iter().for_each(|hold| hold.over());
                self.last_lane(txn).run(move || decide::finish(&store, mailbox, id, txn));
            }
            Request::Commit { txn } => {
                let hold = self.begun.get(&txn).cloned();
                self.last_lane(txn).run(move || decide::commit(&store, mailbox, hold, id, txn));
            }
            Request::Abort { txn } => self.abort(txn, move || mailbox.reply(id, Ok(Reply::Done))),
            read => self.reads.push_back((id, read)),
        }
    }

    /// Starts the reads that wait, as many as may run at once, and none while the peer does not read its answers.
    fn read_on(&mut self, connection: &server::Connection) {
        while self.reading.len() < READS && connection.backlog() < BACKLOG {
            let Some((id, request)) = self.reads.pop_front() else { return };
            self.reading.insert(id);
            let (service, mailbox) = (self.service.clone(), self.mailbox.clone());
            self.service.workers().run(move || reads::answer(&service, mailbox, id, request));
        }
    }

    /// A blob was opened: now it is sent.
    fn opened(
        &mut self,
        connection: &mut server::Connection,
        id: RequestId,
        opened: Result<Opened, RequestError>,
    ) {
        self.reading.remove(&id);
        let opened = match opened {
            Ok(_) if self.cancelled.remove(&id) => Err(RequestError::Cancelled),
            opened => opened,
        };
        let sent = opened.and_then(|opened| self.send(connection, id.into(), opened));
        if let Err(error) = sent {
            self.cancelled.remove(&id);
            // It waits for this: nothing else answers a read.
            let _ = connection.reply(id, Err(error));
        }
    }

    fn send(
        &mut self,
        connection: &mut server::Connection,
        transfer: TransferId,
        opened: Opened,
    ) -> Result<(), RequestError> {
        let Opened { info, source, whole, proves } = opened;
        let started = connection.start_blob(transfer, info.size, info.digest);
        started.map_err(|error| RequestError::Failed { detail: error.to_string() })?;
        match source {
            Some(source) => {
                self.outlets.insert(transfer, source);
                if whole {
                    self.whole.insert(transfer, proves);
                }
            }
            None => self.count_sent(whole),
        }
        Ok(())
    }

    fn count_sent(&self, whole: bool) {
        let counters = self.service.counters();
        if whole {
            counters.blobs_sent.add(1)
        } else {
            counters.ranges_sent.add(1)
        };
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.state.inlets.abort_all();
        let left: BTreeMap<TxnId, Phase> = self.connection.transactions().collect();
        // Its client has taken leave, or has lost its mind: it does not come back.
        let breach = self.connection.error().is_some_and(PeerError::is_breach);
        let over = breach || self.connection.is_closing();
        for (txn, hold) in std::mem::take(&mut self.state.begun) {
            match left.get(&txn) {
                // Its client may come back.
                Some(Phase::Open) if !over => {}
                // What is being finished is finished: its client will ask for the outcome. Whether it is, is found out.
                Some(Phase::Finishing) => {}
                None => hold.over(),
                Some(_) => {
                    self.state.begun.insert(txn, hold);
                    self.state.abort(txn, || {});
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::{Config, Limits, TxnMeta, client};

    use super::*;
    use crate::session::ServerConfig;
    use crate::{ModelStore, StoreConfig};

    /// Moves everything that is said, both ways, until all that was asked is answered.
    fn settle(client: &mut client::Connection, session: &mut Session) {
        let mut answered = false;
        while !answered || client.requests_in_flight() > 0 {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            buffered::transmit(client, Time::ZERO, &mut up, usize::MAX, |_, _| Ok(()));
            session.receive(Time::ZERO, Bytes::from(up)).unwrap();
            session.transmit(Time::ZERO, &mut down, usize::MAX, false);
            buffered::receive(client, Time::ZERO, &down, &mut (), |(), _, _| {}, |_, _, _| {}).unwrap();
            answered = client.is_connected();
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_vote_that_fails_leaves_no_lane_behind_for_as_long_as_the_connection_lives() {
        let limits = Limits { transactions: 2, ..Limits::default() };
        let connection = Config { limits, ..Config::default() };
        let store: Arc<dyn Store> = Arc::new(ModelStore::new(StoreConfig::default()).unwrap());
        let service = Service::new(store, ServerConfig { connection, ..ServerConfig::default() });
        let mut session = Session::new(&service, Time::ZERO, || {});
        let mut client = client::Connection::new(Time::ZERO, Config::default(), b"");
        settle(&mut client, &mut session);
        for name in 0..100 {
            let txn = TxnId([name; 16]);
            // Its name is taken, so its vote fails.
            client.request(Request::Outcome { txn }).unwrap();
            settle(&mut client, &mut session);
            client.request(Request::Begin { txn, meta: TxnMeta::default() }).unwrap();
            client.request(Request::Vote { txn }).unwrap();
            settle(&mut client, &mut session);
        }
        assert!(session.state.lanes.len() <= 5, "{} lanes", session.state.lanes.len());
    }
}
