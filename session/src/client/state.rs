//! The state of a session beside its protocol machine: requests that are queued, requests that wait for their answers,
//! open transactions, and what an answer means for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use blobferry_platform::pool::BlockingPool;
use blobferry_protocol::{Reply, Request, RequestError, RequestId, Tid, TransferEvent, TxnId, client};

use crate::client::dial::Dialer;
use crate::client::error::{CallError, Completion};
use crate::client::events::{ConnectionEvent, Invalidation, Listener, Wake, Watcher};
use crate::client::memory_transfers::{Collected, MemoryTransfers};
use crate::client::queue::{Queued, Sent};
use crate::io::{IncomingTransfers, OutgoingTransfers, SinkEvent};

/// Control bytes in the machine's queue beyond which requests wait here.
const BACKLOG: usize = 1 << 20;

/// A connection's machine, and the session's state beside it.
pub(super) struct Inner {
    pub(super) connection: client::Connection,
    pub(super) state: SessionState,
}

/// Whether there is a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// There is a connection, as far as this side knows. Connections are numbered from 1: leftovers of an earlier
    /// generation are ignored.
    Up { generation: u64 },
    /// There is none; there may be another.
    Down,
    /// The session has ended.
    Closed { reason: String },
}

/// What is true of a session beside its machine.
pub(super) struct SessionState {
    pub(super) link: Link,
    /// The number of connections until now.
    generations: u64,
    pub(super) wake: Option<Wake>,
    pub(super) dialer: Dialer,
    /// The most transfers at once towards this side, as announced to the server.
    downloads: usize,
    /// The requests that are not sent yet, in order.
    pub(super) queued: VecDeque<Queued>,
    /// The requests that wait for their answers.
    pub(super) sent: BTreeMap<RequestId, Sent>,
    /// The open transactions.
    pub(super) transactions: BTreeMap<TxnId, Txn>,
    /// The transactions of which a part failed on this side: a vote or commit must fail, too.
    doomed: BTreeSet<TxnId>,
    pub(super) incoming: IncomingTransfers,
    /// The small blobs that go to memory, and not through `incoming`.
    pub(super) memory: MemoryTransfers,
    pub(super) outgoing: OutgoingTransfers,
    pub(super) last_tid: Tid,
    pub(super) handshake_waiters: Vec<Completion<()>>,
    pub(super) listeners: Vec<Listener>,
    pub(super) watchers: Vec<Watcher>,
    /// A handshake has succeeded before.
    pub(super) was_connected: bool,
    /// The user has said goodbye.
    pub(super) leaving: bool,
    /// The server has said goodbye on this connection.
    pub(super) server_leaving: bool,
    /// Why the server is unreachable, after
    /// [`unreachable_timeout`](super::Reconnect::unreachable_timeout): calls fail until the next handshake.
    pub(super) unreachable: Option<String>,
    /// What to do when the lock is released, in order.
    deferred: Vec<Deferred>,
    /// The callbacks that the driver runs, if it has asked for them.
    pub(super) for_driver: Option<VecDeque<Deferred>>,
}

/// An act that needs the lock to be free.
pub(super) type Deferred = Box<dyn FnOnce() + Send>;

/// An open transaction.
pub(super) enum Txn {
    /// It is on the connection.
    Attached,
    /// Its connection was lost. Its requests wait; those that were sent keep the number that they had.
    Attaching(Vec<(Option<RequestId>, Queued)>),
    /// The server does not go on with it, for this reason.
    Lost(String),
}

impl Inner {
    /// Sends queued requests, as far as the server's limits allow.
    pub(super) fn pump(&mut self) {
        while self.connection.is_connected() && self.state.is_up() {
            let (limits, backlog) = (self.connection.peer_limits(), self.connection.backlog());
            // When the server has said goodbye, everything new waits for the next connection.
            let next = match self.state.server_leaving && !self.state.leaving {
                true => self.state.next_that_ends(),
                false => Some(0),
            };
            let Some(queued) = next.and_then(|next| self.state.queued.get(next)) else { return };
            let fits = (backlog == 0 || backlog + queued.len() < BACKLOG)
                && self.connection.requests_in_flight() < limits.requests as usize
                && match queued {
                    Queued::Call { .. } | Queued::Attach(_) => true,
                    Queued::Download { .. } | Queued::Load { .. } => {
                        self.connection.downloads() < self.state.downloads
                    }
                    Queued::Upload { .. } => self.connection.uploads() < limits.transfers as usize,
                };
            if !fits {
                return;
            }
            let Some(queued) = next.and_then(|next| self.state.queued.remove(next)) else { return };
            self.send(queued);
        }
    }

    fn send(&mut self, queued: Queued) {
        let (connection, state) = (&mut self.connection, &mut self.state);
        match queued {
            Queued::Call { request, done } => {
                if let Some(txn) = commits(&request).filter(|txn| state.doomed.contains(txn)) {
                    return state.defer(move || done(Err(RequestError::Doomed { txn }.into())));
                }
                match connection.request(request.clone()) {
                    Ok(id) => drop(state.sent.insert(id, Sent::Call { request, done })),
                    Err(error) => {
                        if let Some(txn) = stores(&request) {
                            state.doom(txn);
                        }
                        state.defer(move || done(Err(error.into())));
                    }
                }
            }
            Queued::Attach(txn) => match connection.request(Request::Attach { txn }) {
                Ok(id) => drop(state.sent.insert(id, Sent::Attach(txn))),
                Err(error) => state.not_attached(txn, &RequestError::Failed { detail: error.to_string() }),
            },
            Queued::Download { to } => {
                let (blob, range) = to.missing();
                match connection.request(Request::SendBlob { blob, from: range.start, upto: range.end }) {
                    Ok(id) => state.incoming.expect(id.into(), to.into_sink()),
                    Err(error) => state.defer(move || to.fail(error.into())),
                }
            }
            Queued::Load { to } => {
                let (blob, range) = to.missing();
                match connection.request(Request::SendBlob { blob, from: range.start, upto: range.end }) {
                    Ok(id) => state.memory.expect(id.into(), to),
                    Err(error) => state.defer(move || to.fail(error.into())),
                }
            }
            Queued::Upload { upload, from, source } => {
                let (txn, data) = (upload.txn, upload.data.clone());
                let range = from..upload.size;
                match connection.resume_upload(txn, upload.oid, upload.base, data, range, upload.digest) {
                    Ok(transfer) => {
                        if let Some(source) = source {
                            state.outgoing.insert(transfer, source);
                        }
                        state.sent.insert(transfer.into(), Sent::Upload(upload));
                    }
                    Err(error) => {
                        state.doom(txn);
                        state.defer(move || (upload.done)(Err(error.into())));
                    }
                }
            }
        }
    }
}

/// Returns the transaction that a request would vote on or commit.
fn commits(request: &Request) -> Option<TxnId> {
    match request {
        Request::Vote { txn } | Request::Finish { txn } | Request::Commit { txn } => Some(*txn),
        _ => None,
    }
}

/// Returns the transaction that a request puts something into.
fn stores(request: &Request) -> Option<TxnId> {
    match request {
        Request::Store { txn, .. } | Request::StoreShared { txn, .. } | Request::Delete { txn, .. } => {
            Some(*txn)
        }
        _ => None,
    }
}

impl SessionState {
    /// Creates the state of a session without a connection. `downloads` is the most transfers at once towards this
    /// side; blobs of at most `small` bytes are collected in memory.
    pub(super) fn new(dialer: Dialer, downloads: usize, small: u64, workers: &BlockingPool) -> SessionState {
        SessionState {
            link: Link::Down,
            generations: 0,
            wake: None,
            dialer,
            downloads,
            queued: VecDeque::new(),
            sent: BTreeMap::new(),
            transactions: BTreeMap::new(),
            doomed: BTreeSet::new(),
            incoming: IncomingTransfers::new(workers, Arc::new(|_| {})),
            memory: MemoryTransfers::new(small),
            outgoing: OutgoingTransfers::default(),
            last_tid: Tid::ZERO,
            handshake_waiters: Vec::new(),
            listeners: Vec::new(),
            watchers: Vec::new(),
            was_connected: false,
            leaving: false,
            server_leaving: false,
            unreachable: None,
            deferred: Vec::new(),
            for_driver: None,
        }
    }

    /// Begins a connection, and returns its number.
    pub(super) fn begin_generation(&mut self, wake: Wake) -> u64 {
        self.generations += 1;
        if self.closed().is_none() {
            self.link = Link::Up { generation: self.generations };
        }
        (self.wake, self.server_leaving) = (Some(wake), false);
        self.generations
    }

    /// Returns whether this is the number of the connection that there is.
    pub(super) fn is_generation(&self, generation: u64) -> bool {
        self.link == Link::Up { generation }
    }

    /// Returns whether there is a connection, as far as this side knows.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Returns why the session has ended, if it has.
    pub(super) fn closed(&self) -> Option<&str> {
        match &self.link {
            Link::Closed { reason } => Some(reason),
            Link::Up { .. } | Link::Down => None,
        }
    }

    /// Returns whether there will be another connection after this one.
    pub(super) fn goes_on(&self) -> bool {
        self.closed().is_none() && !self.leaving && self.dialer.can_call()
    }

    /// Queues a request, or fails it at once.
    pub(super) fn enqueue(&mut self, queued: Queued) {
        if let Some(reason) = self.closed().map(str::to_owned) {
            return self.defer(move || queued.fail(CallError::Disconnected { reason }));
        }
        match (queued.txn(), &self.unreachable) {
            (Some(txn), _) => self.enqueue_in(txn, queued),
            (None, Some(reason)) => {
                let reason = reason.clone();
                self.defer(move || queued.fail(CallError::Disconnected { reason }));
            }
            (None, None) => self.queued.push_back(queued),
        }
    }

    /// Queues a request of a transaction.
    pub(super) fn enqueue_in(&mut self, txn: TxnId, queued: Queued) {
        let (begins, aborts) = match &queued {
            Queued::Call { request, .. } => {
                (matches!(request, Request::Begin { .. }), matches!(request, Request::Abort { .. }))
            }
            _ => (false, false),
        };
        if begins {
            let state = self.unreachable.clone().map_or(Txn::Attached, Txn::Lost);
            self.transactions.entry(txn).or_insert(state);
        }
        if aborts {
            return self.abort(txn, queued);
        }
        match self.transactions.get_mut(&txn) {
            Some(Txn::Attaching(requests)) => requests.push((None, queued)),
            Some(Txn::Lost(reason)) => {
                let reason = reason.clone();
                // A finish is the user's last request: no abort follows.
                if let Queued::Call { request: Request::Finish { .. }, .. } = &queued {
                    self.transactions.remove(&txn);
                }
                self.defer(move || queued.fail(CallError::Disconnected { reason }));
            }
            // The machine knows why a transaction is unknown.
            Some(Txn::Attached) | None => self.queued.push_back(queued),
        }
    }

    /// Aborts a transaction. If it is on no connection, the server is told on the next one, since it may hold it
    /// detached.
    fn abort(&mut self, txn: TxnId, queued: Queued) {
        self.doomed.remove(&txn);
        let is_over = match self.transactions.remove(&txn) {
            Some(Txn::Attaching(requests)) => {
                self.queued.retain(|queued| !matches!(queued, Queued::Attach(attached) if *attached == txn));
                for (_, request) in requests {
                    let reason = "the client gave it up".to_owned();
                    self.defer(move || request.fail(RequestError::Aborted { txn, reason }.into()));
                }
                self.unreachable.is_some()
            }
            Some(Txn::Lost(_)) => true,
            Some(Txn::Attached) | None => false,
        };
        match queued {
            Queued::Call { done, .. } if is_over => self.defer(move || done(Ok(Reply::Done))),
            queued => self.queued.push_back(queued),
        }
    }

    /// Makes every later vote, finish and commit of a transaction fail: something that was stored in it has failed on
    /// this side, and the server does not know.
    pub(super) fn doom(&mut self, txn: TxnId) {
        if self.transactions.contains_key(&txn) {
            self.doomed.insert(txn);
        }
    }

    /// Returns the position of the first queued request that brings a transaction nearer to its end. Requests behind
    /// something that is still to be put into their transaction do not count: without that part it would be another
    /// transaction.
    fn next_that_ends(&self) -> Option<usize> {
        let mut unfinished = BTreeSet::new();
        self.queued.iter().position(|queued| {
            let is_next = queued.ends() && queued.txn().is_none_or(|txn| !unfinished.contains(&txn));
            unfinished.extend(queued.txn());
            is_next
        })
    }

    /// Reports the progress of the sinks of the next connection to `report`.
    pub(super) fn receive_with(
        &mut self,
        workers: &BlockingPool,
        report: Arc<dyn Fn(SinkEvent) + Send + Sync>,
    ) {
        self.incoming = IncomingTransfers::new(workers, report);
    }

    /// Runs something as soon as the lock is free.
    pub(super) fn defer(&mut self, act: impl FnOnce() + Send + 'static) {
        self.deferred.push(Box::new(act));
    }

    pub(super) fn take_deferred(&mut self) -> Vec<impl FnOnce() + Send + use<>> {
        std::mem::take(&mut self.deferred)
    }

    /// Leaves what is deferred to the driver. Returns `false` if the driver has not asked for it.
    pub(super) fn leave_to_driver(&mut self) -> bool {
        let Some(for_driver) = &mut self.for_driver else { return false };
        for_driver.extend(self.deferred.drain(..));
        true
    }

    /// Notes that the server has made progress.
    pub(super) fn server_answered(&mut self) {
        self.dialer.answered();
    }

    /// Takes an event of the machine.
    pub(super) fn event(&mut self, event: client::Event) {
        match event {
            client::Event::Connected(welcome) => {
                let missed = self.was_connected && welcome.last_tid > self.last_tid;
                (self.was_connected, self.unreachable) = (true, None);
                self.last_tid = self.last_tid.max(welcome.last_tid);
                if missed {
                    self.invalidate(&Invalidation { tid: welcome.last_tid, oids: None });
                }
                self.publish(&ConnectionEvent::Connected { address: self.dialer.address() });
                let waiters = std::mem::take(&mut self.handshake_waiters);
                self.defer(|| waiters.into_iter().for_each(|done| done(Ok(()))));
            }
            // The machine is dead, and tells its driver why.
            client::Event::Refused(_) => {}
            client::Event::Reply { id, result } => {
                self.server_answered();
                self.reply(id, result);
            }
            client::Event::Invalidate { tid, oids } => {
                self.last_tid = self.last_tid.max(tid);
                self.invalidate(&Invalidation { tid, oids: Some(oids.into()) });
            }
            client::Event::Transfer(event) => self.transfer(event),
            client::Event::Goodbye => {
                tracing::info!(target: "blobferry::client", "the server is stopping");
                self.server_leaving = true;
            }
        }
    }

    fn transfer(&mut self, event: TransferEvent) {
        match self.memory.event(event) {
            Collected::Some => {}
            Collected::All(to, bytes, digest) => self.defer(move || to.finish(bytes, digest)),
            Collected::Elsewhere(event, sink) => {
                if let (TransferEvent::Started { transfer, .. }, Some(sink)) = (&event, sink) {
                    self.incoming.expect(*transfer, sink);
                }
                self.incoming.event(event);
            }
            Collected::Aborted(to, reason) => self.defer(move || to.abort(reason)),
        }
    }

    fn invalidate(&mut self, invalidation: &Invalidation) {
        self.listeners.retain_mut(|listener| listener(invalidation));
    }

    /// Calls the watchers.
    pub(super) fn publish(&mut self, event: &ConnectionEvent) {
        self.watchers.retain_mut(|watcher| watcher(event));
    }

    fn reply(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if let Ok(Reply::Finished { tid }) = result {
            self.last_tid = self.last_tid.max(tid);
        }
        match (self.sent.remove(&id), result) {
            (Some(Sent::Attach(txn)), Ok(Reply::Attached { last, unfinished })) => {
                self.attached(txn, last, &unfinished);
            }
            (Some(Sent::Attach(txn)), result) => {
                let error = result.err().unwrap_or(RequestError::NoSuchTransaction { txn });
                self.not_attached(txn, &error);
            }
            (Some(Sent::Call { request, done }), Err(RequestError::Stopping))
                if request.txn().is_none() && self.goes_on() =>
            {
                self.queued.push_back(Queued::Call { request, done });
            }
            (Some(Sent::Call { request, done }), result) => {
                self.ended_by(&request, &result);
                self.defer(move || done(result.map_err(CallError::from)));
            }
            (Some(Sent::Upload(upload)), result) => {
                let source = self.outgoing.take(id.into());
                let result = match (result, upload.digest) {
                    (Ok(_), Some(digest)) => Ok(digest),
                    // Without the digest the blob cannot be done: the machine refuses such an answer.
                    (result, _) => {
                        let error = result.err().unwrap_or(RequestError::Cancelled);
                        Err(match source {
                            Some(source) => source.explain(error),
                            None => error,
                        })
                    }
                };
                self.defer(move || (upload.done)(result.map_err(CallError::from)));
            }
            (None, Err(reason)) => match self.memory.remove(id.into()) {
                Some(to) => self.defer(move || to.abort(reason)),
                None => self.incoming.abort(id.into(), Some(reason)),
            },
            (None, Ok(_)) => {}
        }
    }

    /// Forgets a transaction that an answer has ended.
    fn ended_by(&mut self, request: &Request, result: &Result<Reply, RequestError>) {
        let Some(txn) = commits(request) else { return };
        let is_over = match result {
            Ok(Reply::Finished { .. }) => true,
            Ok(_) | Err(RequestError::WrongPhase { .. }) => false,
            Err(_) => true,
        };
        if is_over {
            self.transactions.remove(&txn);
            self.doomed.remove(&txn);
        }
    }
}
