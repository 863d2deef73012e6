//! One connection of a server: requests go from the machine to the store, and answers from the store to the machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use blobferry_protocol::{
    PeerError, Phase, RequestError, RequestId, Slice, Time, TransferEvent, TransferId, TxnId, buffered,
    server,
};
use bytes::Bytes;
use tracing::Span;

use crate::io::{ConnectionHandler, FileSlice, IncomingTransfers, OutgoingTransfers, SinkEvent};
use crate::server::core::{Membership, ServerCore};
use crate::server::detached::TransactionLease;
use crate::server::inline_policy::WorkBudget;
use crate::server::mailbox::Mailbox;
use crate::server::message::{Message, Opened};
use crate::server::reads::{Reads, Started};
use crate::server::strands::TransactionStrands;
use crate::server::verified::VerifiedFile;

/// Bytes of answers that wait for the peer, beyond which no more of its requests are read.
const BACKLOG: usize = 4 << 20;
/// Bytes of records on their way into the store, beyond which no more are read.
const MAX_RECORDS: u64 = 8 << 20;

/// One connection of a server, without its socket. When it is dropped, open transactions are detached and wait for their
/// client, unless the client has said goodbye or violated the protocol: then they are aborted.
pub struct Handler {
    span: Span,
    connection: server::Connection,
    state: State,
}

pub(super) struct State {
    pub(super) core: ServerCore,
    pub(super) mailbox: Arc<Mailbox<Message>>,
    pub(super) membership: Option<Membership>,
    pub(super) incoming: IncomingTransfers,
    pub(super) outgoing: OutgoingTransfers,
    /// The blobs that are sent as a whole, and what is verified when they are sent.
    pub(super) whole: BTreeMap<TransferId, Option<VerifiedFile>>,
    /// The transactions that were begun or attached on this connection; some have ended. Those of other connections
    /// cannot be used here, even by name.
    pub(super) leases: BTreeMap<TxnId, Arc<TransactionLease>>,
    /// The client goes on with a transaction on another connection.
    pub(super) replaced: bool,
    /// The strands that run the changes of each transaction, in the order of its requests.
    pub(super) strands: TransactionStrands,
    pub(super) reads: Reads,
    /// What may still be done on this thread before other connections have their turn.
    pub(super) budget: WorkBudget,
    /// Answers that wait because the peer does not read those before them.
    pub(super) held_back: Vec<Message>,
    /// Bytes of answers that wait for the peer, beyond which no more are added.
    pub(super) enough: usize,
    /// The lengths of the records on their way into the store.
    pub(super) records: BTreeMap<RequestId, u64>,
    /// The lengths of the records that wait for their blobs.
    pub(super) waiting_records: BTreeMap<RequestId, u64>,
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handler({:?})", self.connection)
    }
}

impl Handler {
    /// Creates a handler that waits for a client's hello. `wake` is called from any thread when there is something to
    /// send, or when the connection may be finished; then the transport must drive the handler.
    #[must_use]
    pub fn new(core: &ServerCore, now: Time, wake: impl Fn() + Send + Sync + 'static) -> Handler {
        let mailbox = Mailbox::new(Box::new(wake));
        let post = mailbox.clone();
        let report = Arc::new(move |report| post.post(Message::Sink(report)));
        let state = State {
            incoming: IncomingTransfers::new(core.workers(), report),
            core: core.clone(),
            mailbox,
            membership: None,
            outgoing: OutgoingTransfers::default(),
            whole: BTreeMap::new(),
            leases: BTreeMap::new(),
            replaced: false,
            strands: TransactionStrands::new(core.workers()),
            reads: Reads::default(),
            budget: WorkBudget::new(core.inline_policy().clone()),
            held_back: Vec::new(),
            enough: BACKLOG.min(core.config().connection.limits.control_queue as usize / 2),
            records: BTreeMap::new(),
            waiting_records: BTreeMap::new(),
        };
        let span = tracing::debug_span!(
            target: "blobferry::server",
            "connection",
            peer = tracing::field::Empty
        );
        Handler { span, connection: server::Connection::new(now, core.config().connection), state }
    }

    /// Records the peer's address in the tracing span of the connection.
    pub fn set_peer(&mut self, peer: impl std::fmt::Display) {
        self.span.record("peer", tracing::field::display(peer));
    }
}

impl ConnectionHandler for Handler {
    fn transmit(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        enough: usize,
        zero_copy: bool,
    ) -> Option<FileSlice> {
        let span = self.span.clone();
        let _entered = span.enter();
        let before = out.len();
        loop {
            self.catch_up();
            let body = self.transmit_once(now, out, enough, zero_copy);
            // Reads that wait for the next turn cause no wake-up.
            if out.len() > before || !self.state.reads.wait_for_turn(&self.state.budget) {
                return body;
            }
        }
    }

    fn body_failed(&mut self, transfer: TransferId, reason: RequestError) {
        let _entered = self.span.enter();
        self.state.core.counters().damage(&reason);
        self.state.outgoing.remove(transfer);
        self.state.whole.remove(&transfer);
        // An error means that the client has cancelled the blob.
        let _ = self.connection.abort_blob(transfer, reason);
    }

    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError> {
        let Handler { span, connection, state } = self;
        let _entered = span.enter();
        state.budget.begin();
        // Work on this thread posts its answers. The transport calls `transmit` or `catch_up` next, which takes them.
        state.mailbox.begin_poll();
        let on_payload = |state: &mut State, slice: Slice, at| state.incoming.payload(slice, bytes.slice(at));
        buffered::receive(connection, now, &bytes, state, State::event, on_payload)
    }

    fn wants_input(&self) -> bool {
        self.connection.backlog() < BACKLOG && self.state.records.values().sum::<u64>() < MAX_RECORDS
    }

    fn payload_due(&self) -> u64 {
        self.connection.expect().payload_due()
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.connection.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError> {
        let _entered = self.span.enter();
        let handled = self.connection.handle_timeout(now);
        self.state.events(&mut self.connection);
        handled
    }

    fn catch_up(&mut self) {
        self.state.budget.begin();
        self.state.mailbox.begin_poll();
        for message in std::mem::take(&mut self.state.held_back) {
            self.message(message);
        }
        loop {
            self.take_messages();
            self.start_reads();
            if self.state.mailbox.end_poll() {
                break;
            }
        }
        if self.state.core.is_stopping() {
            // Without a connection this fails, and the client is refused when it says hello.
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
    /// Starts as many of the waiting reads as may be started now, and none while the peer does not read its answers.
    fn start_reads(&mut self) {
        while self.connection.backlog() < BACKLOG {
            let State { reads, core, mailbox, budget, .. } = &mut self.state;
            match reads.start_next(core, mailbox, budget) {
                // The answer is behind the announcements of all commits that it may reflect.
                Started::Inline => self.take_messages(),
                Started::OnPool => {}
                Started::No => return,
            }
        }
    }

    fn take_messages(&mut self) {
        self.state.mailbox.take().into_iter().for_each(|message| self.message(message));
    }

    fn message(&mut self, message: Message) {
        // A peer that reads slowly gets its answers later. Announcements of commits are not held back: they must come
        // before answers that reflect them.
        if matches!(message, Message::Reply { .. }) && self.connection.backlog() >= self.state.enough {
            self.state.held_back.push(message);
            return;
        }
        self.state.message(&mut self.connection, message);
        // An answer may release a vote that has waited for it.
        self.state.events(&mut self.connection);
    }

    fn transmit_once(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        enough: usize,
        zero_copy: bool,
    ) -> Option<FileSlice> {
        let State { outgoing, core, whole, .. } = &mut self.state;
        let mut body = None;
        buffered::transmit(&mut self.connection, now, out, enough, |slice, into| {
            match outgoing.give(slice, into, zero_copy) {
                Ok(given) => {
                    core.counters().bytes_sent.add(slice.len);
                    body = given;
                    Ok(())
                }
                Err(error) => {
                    core.counters().damage(&error);
                    whole.remove(&slice.transfer);
                    Err(error)
                }
            }
        });
        for drained in self.state.outgoing.take_drained() {
            self.state.outgoing.remove(drained.transfer);
            let whole = self.state.whole.remove(&drained.transfer);
            self.state.count_sent(whole.is_some());
            whole.flatten().into_iter().for_each(|file| self.state.core.verified().add(file));
        }
        body
    }
}

impl State {
    /// Takes the events of the machine.
    fn events(&mut self, connection: &mut server::Connection) {
        while let Some(event) = connection.poll_event() {
            self.event(connection, event);
        }
    }

    fn event(&mut self, connection: &mut server::Connection, event: server::Event) {
        match event {
            server::Event::Hello { .. } => self.greet(connection),
            server::Event::Request { id, request } => {
                self.core.counters().requests.add(1);
                self.request(connection, id, request);
            }
            server::Event::Cancelled { id } => {
                // Only reads can be cancelled.
                if self.reads.cancel(id) {
                    let _ = connection.reply(id, Err(RequestError::Cancelled));
                }
            }
            server::Event::Abandoned { txn } => self.abort(txn, || {}),
            server::Event::Transfer(event) => {
                if let TransferEvent::Aborted { transfer, .. } = &event {
                    self.waiting_records.remove(&(*transfer).into());
                }
                self.incoming.event(event);
            }
            server::Event::SendingAborted { transfer } => {
                self.outgoing.remove(transfer);
                self.whole.remove(&transfer);
            }
            server::Event::Goodbye => {}
        }
    }

    /// Welcomes a client. The connection is registered for commits first, and the client then gets the last tid before
    /// those: it misses no commit.
    fn greet(&mut self, connection: &mut server::Connection) {
        // An error is impossible: the machine waits for this answer.
        let _ = match self.core.admit(&self.mailbox) {
            Ok((membership, last)) => {
                self.membership = Some(membership);
                connection.welcome(last)
            }
            Err(refusal) => connection.refuse(refusal),
        };
    }

    fn message(&mut self, connection: &mut server::Connection, message: Message) {
        match message {
            Message::Reply { id, result } => {
                self.records.remove(&id);
                self.waiting_records.remove(&id);
                self.reads.answered(id);
                // An error means that the machine has answered the request itself.
                let _ = connection.reply(id, result);
            }
            Message::Opened { id, opened } => self.opened(connection, id, opened),
            Message::Attached { id, attached } => {
                let reply = attached.map(|lease| {
                    let reply = lease.reply();
                    self.strands.attached(lease.txn());
                    self.begun(connection, lease);
                    reply
                });
                let _ = connection.reply(id, reply);
            }
            Message::Replaced => self.replaced = true,
            Message::Sink(SinkEvent::Stored { transfer, upto }) => {
                // An error means that the transfer is over.
                let _ = connection.stored(transfer, upto);
            }
            Message::Sink(SinkEvent::Failed { transfer }) => {
                self.incoming.remove(transfer);
                connection.discard(transfer);
            }
            Message::Committed { tid, oids } => {
                // An error means that the connection is dead.
                let _ = connection.invalidate(tid, &oids);
            }
        }
    }

    /// Starts to send a blob that was opened.
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
            // An error is impossible: nothing else answers a read.
            let _ = connection.reply(id, Err(error));
        }
    }

    fn send(
        &mut self,
        connection: &mut server::Connection,
        transfer: TransferId,
        opened: Opened,
    ) -> Result<(), RequestError> {
        let Opened { info, source, is_whole, verifies } = opened;
        let started = connection.start_blob(transfer, info.size, info.digest);
        started.map_err(|error| RequestError::Failed { detail: error.to_string() })?;
        match source {
            Some(source) => {
                self.outgoing.insert(transfer, source);
                if is_whole {
                    self.whole.insert(transfer, verifies);
                }
            }
            None => self.count_sent(is_whole),
        }
        Ok(())
    }

    fn count_sent(&self, is_whole: bool) {
        let counters = self.core.counters();
        if is_whole {
            counters.blobs_sent.add(1)
        } else {
            counters.ranges_sent.add(1)
        };
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        self.state.incoming.abort_all();
        let left: BTreeMap<TxnId, Phase> = self.connection.transactions().collect();
        // The client closed the connection or violated the protocol; it will not attach again.
        let violated = self.connection.error().is_some_and(PeerError::is_protocol_violation);
        let is_over = violated || self.connection.is_closing();
        for (txn, lease) in std::mem::take(&mut self.state.leases) {
            match left.get(&txn) {
                // The client may come back, and attach it.
                Some(Phase::Open) if !is_over => {}
                // The store finishes it, and the client will ask for the outcome.
                Some(Phase::Finishing) => {}
                None => lease.end(),
                Some(_) => {
                    self.state.leases.insert(txn, lease);
                    self.state.abort(txn, || {});
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::{Config, Limits, Request, TxnMeta, client};
    use blobferry_store::{MemoryStore, Store, StoreConfig};

    use super::*;
    use crate::server::ServerConfig;

    /// Moves all bytes, both ways, until all requests are answered.
    fn settle(client: &mut client::Connection, handler: &mut Handler) {
        let mut answered = false;
        while !answered || client.requests_in_flight() > 0 {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            buffered::transmit(client, Time::ZERO, &mut up, usize::MAX, |_, _| Ok(()));
            handler.receive(Time::ZERO, Bytes::from(up)).unwrap();
            handler.transmit(Time::ZERO, &mut down, usize::MAX, false);
            buffered::receive(client, Time::ZERO, &down, &mut (), |(), _, _| {}, |_, _, _| {}).unwrap();
            answered = client.is_connected();
            std::thread::yield_now();
        }
    }

    #[test]
    fn failed_votes_leave_no_strands_behind() {
        let limits = Limits { transactions: 2, ..Limits::default() };
        let connection = Config { limits, ..Config::default() };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
        let core = ServerCore::new(store, ServerConfig { connection, ..ServerConfig::default() });
        let mut handler = Handler::new(&core, Time::ZERO, || {});
        let mut client = client::Connection::new(Time::ZERO, Config::default(), b"");
        settle(&mut client, &mut handler);
        for name in 0..100 {
            let txn = TxnId([name; 16]);
            // The outcome of the name is known from here on, so the vote fails.
            client.request(Request::Outcome { txn }).unwrap();
            settle(&mut client, &mut handler);
            client.request(Request::Begin { txn, meta: TxnMeta::default() }).unwrap();
            client.request(Request::Vote { txn }).unwrap();
            settle(&mut client, &mut handler);
        }
        assert!(handler.state.strands.len() <= 5, "{} strands", handler.state.strands.len());
    }
}
