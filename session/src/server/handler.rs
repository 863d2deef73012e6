//! One connection's conversation: what the machine hears goes to the store, what the store says goes to the machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::io::{ConnectionHandler, FileSlice, IncomingTransfers, OutgoingTransfers, SinkEvent};
use blobferry_protocol::{
    PeerError, Phase, RequestError, RequestId, Slice, Time, TransferEvent, TransferId, TxnId, buffered,
    server,
};
use bytes::Bytes;

use crate::server::core::{Membership, ServerCore};
use crate::server::detached::TransactionLease;
use crate::server::inline_policy::WorkBudget;
use crate::server::mailbox::{Mailbox, Message};
use crate::server::reads::{Opened, Reads, Where};
use crate::server::strands::TransactionStrands;
use crate::server::verified::VerifiedFile;

/// Bytes of answers that may wait for the peer before no more of its requests are read.
const BACKLOG: usize = 4 << 20;
/// Bytes of records on their way into the store before no more are read.
const HELD: u64 = 8 << 20;

/// One connection of a server, without its socket. Dropped, it aborts the transactions that are open on it.
pub struct Handler {
    connection: server::Connection,
    state: State,
}

pub(super) struct State {
    pub(super) service: ServerCore,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) membership: Option<Membership>,
    pub(super) inlets: IncomingTransfers,
    pub(super) outlets: OutgoingTransfers,
    /// The blobs among what leaves that are sent as a whole, and what is known when that is done.
    pub(super) whole: BTreeMap<TransferId, Option<VerifiedFile>>,
    /// The transactions that were begun here or attached, some of which are over. What others have begun is none of its
    /// business, whoever knows the name.
    pub(super) begun: BTreeMap<TxnId, Arc<TransactionLease>>,
    /// The client goes on elsewhere.
    pub(super) replaced: bool,
    /// What changes a transaction, in the order of its requests.
    pub(super) lanes: TransactionStrands,
    pub(super) reads: Reads,
    /// What may be done on this thread before others have their turn.
    pub(super) turn: WorkBudget,
    /// Answers that wait because the peer does not read those before them.
    pub(super) late: Vec<Message>,
    /// Bytes of answers that may wait for the peer before no more are added.
    pub(super) enough: usize,
    /// Records on their way into the store: how long they are.
    pub(super) held: BTreeMap<RequestId, u64>,
    /// The same of those that wait for their blobs.
    pub(super) held_for_blobs: BTreeMap<RequestId, u64>,
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?})", self.connection)
    }
}

impl Handler {
    /// A conversation that waits for a client's hello. `wake` is called from any thread when there is something to
    /// send or the end has come nearer: drive the endpoint then.
    #[must_use]
    pub fn new(service: &ServerCore, now: Time, wake: impl Fn() + Send + Sync + 'static) -> Handler {
        let mailbox = Mailbox::new(Box::new(wake));
        let post = mailbox.clone();
        let report = Arc::new(move |report| post.post(Message::Inlet(report)));
        let state = State {
            inlets: IncomingTransfers::new(service.workers(), report),
            service: service.clone(),
            mailbox,
            membership: None,
            outlets: OutgoingTransfers::default(),
            whole: BTreeMap::new(),
            begun: BTreeMap::new(),
            replaced: false,
            lanes: TransactionStrands::new(service.workers()),
            reads: Reads::default(),
            turn: WorkBudget::new(service.pace().clone()),
            late: Vec::new(),
            enough: BACKLOG.min(service.config().connection.limits.control_queue as usize / 2),
            held: BTreeMap::new(),
            held_for_blobs: BTreeMap::new(),
        };
        Handler { connection: server::Connection::new(now, service.config().connection), state }
    }
}

impl ConnectionHandler for Handler {
    fn transmit(&mut self, now: Time, out: &mut Vec<u8>, enough: usize, lend: bool) -> Option<FileSlice> {
        let before = out.len();
        loop {
            self.catch_up();
            let lent = self.say(now, out, enough, lend);
            // What waits for its turn has nobody to wake the session for it.
            if out.len() > before || !self.state.reads.wait_for_turn(&self.state.turn) {
                return lent;
            }
        }
    }

    fn body_failed(&mut self, transfer: TransferId, reason: RequestError) {
        self.state.service.counters().damage(&reason);
        self.state.outlets.remove(transfer);
        self.state.whole.remove(&transfer);
        // Over only if the client does not want it any more.
        let _ = self.connection.abort_blob(transfer, reason);
    }

    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError> {
        let Handler { connection, state } = self;
        state.turn.begin();
        // What is done here posts its answers, and the transport has them fetched behind this.
        state.mailbox.attend();
        let on_payload = |state: &mut State, slice: Slice, at| state.inlets.payload(slice, bytes.slice(at));
        buffered::receive(connection, now, &bytes, state, State::event, on_payload)
    }

    fn wants_input(&self) -> bool {
        self.connection.backlog() < BACKLOG && self.state.held.values().sum::<u64>() < HELD
    }

    fn payload_due(&self) -> u64 {
        self.connection.expect().payload_due()
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
        self.state.turn.begin();
        self.state.mailbox.attend();
        for news in std::mem::take(&mut self.state.late) {
            self.news(news);
        }
        loop {
            self.take_news();
            self.read_on();
            if self.state.mailbox.leave() {
                break;
            }
        }
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

impl Handler {
    /// Makes the reads that wait, as many as may be made now, and none while the peer does not read its answers.
    fn read_on(&mut self) {
        while self.connection.backlog() < BACKLOG {
            let State { reads, service, mailbox, turn, .. } = &mut self.state;
            match reads.make_next(service, mailbox, turn) {
                // Its answer waits behind all that was announced before it could show it.
                Where::Here => self.take_news(),
                Where::Elsewhere => {}
                Where::Nowhere => return,
            }
        }
    }

    fn take_news(&mut self) {
        self.state.mailbox.take().into_iter().for_each(|news| self.news(news));
    }

    fn news(&mut self, news: Message) {
        // Who reads slowly gets its answers later. Commits must be told before answers that show them.
        if matches!(news, Message::Reply { .. }) && self.connection.backlog() >= self.state.enough {
            self.state.late.push(news);
            return;
        }
        self.state.news(&mut self.connection, news);
        // An answer may let a vote go that has waited for it.
        self.state.events(&mut self.connection);
    }

    fn say(&mut self, now: Time, out: &mut Vec<u8>, enough: usize, lend: bool) -> Option<FileSlice> {
        let State { outlets, service, whole, .. } = &mut self.state;
        let mut lent = None;
        buffered::transmit(&mut self.connection, now, out, enough, |slice, into| {
            match outlets.give(slice, into, lend) {
                Ok(given) => {
                    service.counters().bytes_sent.add(slice.len);
                    lent = given;
                    Ok(())
                }
                Err(error) => {
                    service.counters().damage(&error);
                    whole.remove(&slice.transfer);
                    Err(error)
                }
            }
        });
        for drained in self.state.outlets.take_drained() {
            self.state.outlets.remove(drained.transfer);
            let whole = self.state.whole.remove(&drained.transfer);
            self.state.count_sent(whole.is_some());
            whole.flatten().into_iter().for_each(|proof| self.state.service.proofs().add(proof));
        }
        lent
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
                if self.reads.cancel(id) {
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

    fn news(&mut self, connection: &mut server::Connection, news: Message) {
        match news {
            Message::Reply { id, result } => {
                self.held.remove(&id);
                self.held_for_blobs.remove(&id);
                self.reads.answered(id);
                // A request that was answered by the machine itself meanwhile needs no other answer.
                let _ = connection.reply(id, result);
            }
            Message::Opened { id, opened } => self.opened(connection, id, opened),
            Message::Attached { id, attached } => {
                let reply = attached.map(|hold| {
                    let reply = hold.reply();
                    self.lanes.unknown(hold.txn());
                    self.begun(connection, hold);
                    reply
                });
                let _ = connection.reply(id, reply);
            }
            Message::Replaced => self.replaced = true,
            Message::Inlet(SinkEvent::Stored { transfer, upto }) => {
                // The transfer may be over meanwhile.
                let _ = connection.stored(transfer, upto);
            }
            Message::Inlet(SinkEvent::Failed { transfer }) => {
                self.inlets.remove(transfer);
                connection.discard(transfer);
            }
            Message::Committed { tid, oids } => {
                // A connection that is dead needs not know.
                let _ = connection.invalidate(tid, &oids);
            }
        }
    }

    /// A blob was opened: now it is sent.
    fn opened(
        &mut self,
        connection: &mut server::Connection,
        id: RequestId,
        opened: Result<Opened, RequestError>,
    ) {
        let opened = match opened {
            Ok(_) if self.reads.answered(id) => Err(RequestError::Cancelled),
            opened => opened,
        };
        let sent = opened.and_then(|opened| self.send(connection, id.into(), opened));
        if let Err(error) = sent {
            self.reads.answered(id);
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

impl Drop for Handler {
    fn drop(&mut self) {
        self.state.inlets.abort_all();
        let left: BTreeMap<TxnId, Phase> = self.connection.transactions().collect();
        // Its client has taken leave, or has lost its mind: it does not come back.
        let breach = self.connection.error().is_some_and(PeerError::is_protocol_violation);
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
    use blobferry_protocol::{Config, Limits, Request, TxnMeta, client};

    use super::*;
    use crate::server::ServerConfig;
    use blobferry_store::{MemoryStore, Store, StoreConfig};

    /// Moves everything that is said, both ways, until all that was asked is answered.
    fn settle(client: &mut client::Connection, session: &mut Handler) {
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
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
        let service = ServerCore::new(store, ServerConfig { connection, ..ServerConfig::default() });
        let mut session = Handler::new(&service, Time::ZERO, || {});
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
