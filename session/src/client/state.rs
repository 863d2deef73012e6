//! What is asked of the server: calls that wait to be sent, calls that wait for their answers, and what an answer means.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use blobferry_protocol::{
    BlobId, Digest, Oid, Reply, Request, RequestError, RequestId, Tid, TransferEvent, TxnId, client,
};

use crate::client::dial::{ConnectionEvent, Dialer};
use crate::client::download::{DownloadSink, DownloadTarget};
use crate::client::error::{CallError, Completion};
use crate::client::memory_download::{Collected, MemoryDownload, MemoryDownloads};
use crate::client::reconnect::Txn;
use crate::client::session::{Inner, Invalidation, Listener, Wake, Watcher};
use crate::io::{IncomingTransfers, OutgoingTransfers, SinkEvent, Source};
use blobferry_platform::pool::BlockingPool;

/// Control bytes that may wait before calls have to.
const BACKLOG: usize = 1 << 20;

/// What is true of a session beside its machine.
pub(super) struct SessionState {
    /// Counts connections: what one before has left behind has nothing to say any more. Odd while there is one.
    pub(super) generation: u64,
    pub(super) wake: Option<Wake>,
    pub(super) dialer: Dialer,
    /// Transfers at once towards this side, as announced.
    downloads: usize,
    /// Calls that are not sent yet, in order.
    pub(super) waiting: VecDeque<Queued>,
    pub(super) waiters: BTreeMap<RequestId, Sent>,
    /// The transactions that are open.
    pub(super) transactions: BTreeMap<TxnId, Txn>,
    pub(super) inlets: IncomingTransfers,
    /// Small blobs that come to memory: not through the inlets.
    pub(super) collectors: MemoryDownloads,
    pub(super) outlets: OutgoingTransfers,
    pub(super) last_tid: Tid,
    /// Who waits for the handshake.
    pub(super) handshake_waiters: Vec<Completion<()>>,
    /// Who wants to hear of commits.
    pub(super) listeners: Vec<Listener>,
    /// Who wants to hear of the connection.
    pub(super) watchers: Vec<Watcher>,
    /// There has been a connection.
    pub(super) greeted: bool,
    /// The user has said goodbye.
    pub(super) leaving: bool,
    /// The server has.
    pub(super) server_leaves: bool,
    /// Patience is at its end: calls fail, for this reason, until there is a connection again.
    pub(super) down: Option<String>,
    pub(super) closed: Option<String>,
    after: Vec<After>,
    /// What drivers have to do later, where they want to do it themselves.
    pub(super) deferred: Option<VecDeque<After>>,
}

/// What to do as soon as the lock is free, in order.
pub(super) type After = Box<dyn FnOnce() + Send>;

/// A call that is not sent yet.
pub(super) enum Queued {
    Call {
        request: Request,
        done: Completion<Reply>,
    },
    /// Goes on with a transaction.
    Attach(TxnId),
    Download {
        blob: BlobId,
        range: Range<u64>,
        target: DownloadTarget,
    },
    /// A blob that is wanted in memory.
    Load {
        to: Box<MemoryDownload>,
    },
    Upload {
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        /// The server has the bytes below this offset.
        from: u64,
        size: u64,
        /// Where it is known already.
        digest: Option<Digest>,
        /// Where there is anything to read.
        source: Option<Source>,
        done: Completion<Digest>,
    },
}

/// Who waits for a reply, and what is asked again should the connection be lost. Who waits for a blob waits in its sink.
pub(super) enum Sent {
    Call {
        request: Request,
        done: Completion<Reply>,
    },
    Attach(TxnId),
    Upload {
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        size: u64,
        digest: Option<Digest>,
        done: Completion<Digest>,
    },
}

impl Queued {
    /// The transaction that it belongs to.
    pub(super) fn txn(&self) -> Option<TxnId> {
        match self {
            Queued::Call { request, .. } => request.txn(),
            Queued::Upload { txn, .. } | Queued::Attach(txn) => Some(*txn),
            Queued::Download { .. } | Queued::Load { .. } => None,
        }
    }

    /// About how many bytes it queues.
    fn len(&self) -> usize {
        match self {
            Queued::Call {
                request: Request::Store { data, .. } | Request::StoreShared { data, .. }, ..
            }
            | Queued::Upload { data, .. } => data.len(),
            Queued::Call { .. } | Queued::Attach(_) | Queued::Download { .. } | Queued::Load { .. } => 0,
        }
    }

    /// Does it bring a transaction nearer to its end? Those are asked even when one of the sides has taken leave.
    pub(super) fn ends(&self) -> bool {
        matches!(self, Queued::Call { request, .. } if request.ends())
    }

    pub(super) fn fail(self, error: CallError) {
        match self {
            Queued::Call { done, .. } => done(Err(error)),
            Queued::Upload { done, .. } => done(Err(error)),
            Queued::Download { target, .. } => target.fail(error),
            Queued::Load { to } => to.fail(error),
            Queued::Attach(_) => {}
        }
    }
}

impl Inner {
    /// Sends the calls that wait, as far as the server's limits allow.
    pub(super) fn pump(&mut self) {
        while self.connection.is_connected() && self.state.is_alive() {
            let (limits, backlog) = (self.connection.peer_limits(), self.connection.backlog());
            // When the server takes leave, everything new waits for the next connection.
            let next = match self.state.server_leaves && !self.state.leaving {
                true => self.state.next_that_ends(),
                false => Some(0),
            };
            let Some(ask) = next.and_then(|next| self.state.waiting.get(next)) else { return };
            let room = (backlog == 0 || backlog + ask.len() < BACKLOG)
                && self.connection.requests_in_flight() < limits.requests as usize
                && match ask {
                    Queued::Call { .. } | Queued::Attach(_) => true,
                    Queued::Download { .. } | Queued::Load { .. } => {
                        self.connection.downloads() < self.state.downloads
                    }
                    Queued::Upload { .. } => self.connection.uploads() < limits.transfers as usize,
                };
            if !room {
                return;
            }
            let Some(ask) = next.and_then(|next| self.state.waiting.remove(next)) else { return };
            self.send(ask);
        }
    }

    fn send(&mut self, ask: Queued) {
        let (connection, state) = (&mut self.connection, &mut self.state);
        match ask {
            Queued::Call { request, done } => match connection.request(request.clone()) {
                Ok(id) => drop(state.waiters.insert(id, Sent::Call { request, done })),
                Err(error) => state.after(move || done(Err(error.into()))),
            },
            Queued::Attach(txn) => match connection.request(Request::Attach { txn }) {
                Ok(id) => drop(state.waiters.insert(id, Sent::Attach(txn))),
                Err(error) => state.not_attached(txn, &RequestError::Failed { detail: error.to_string() }),
            },
            Queued::Download { blob, range, target } => {
                let request = Request::SendBlob { blob, from: range.start, upto: range.end };
                match connection.request(request) {
                    Ok(id) => state.inlets.expect(id.into(), Box::new(DownloadSink::new(target))),
                    Err(error) => state.after(move || target.fail(error.into())),
                }
            }
            Queued::Load { to } => {
                let request = Request::SendBlob { blob: to.blob(), from: 0, upto: u64::MAX };
                match connection.request(request) {
                    Ok(id) => state.collectors.expect(id.into(), to),
                    Err(error) => state.after(move || to.fail(error.into())),
                }
            }
            Queued::Upload { txn, oid, base, data, from, size, digest, source, done } => {
                match connection.resume_upload(txn, oid, base, data.clone(), from..size, digest) {
                    Ok(transfer) => {
                        if let Some(source) = source {
                            state.outlets.insert(transfer, source);
                        }
                        let waiter = Sent::Upload { txn, oid, base, data, size, digest, done };
                        state.waiters.insert(transfer.into(), waiter);
                    }
                    Err(error) => state.after(move || done(Err(error.into()))),
                }
            }
        }
    }
}

impl SessionState {
    /// The first that waits and brings a transaction nearer to its end, but for those behind something that still is to
    /// be put into it: without that it would be another transaction.
    fn next_that_ends(&self) -> Option<usize> {
        let mut unfinished = BTreeSet::new();
        self.waiting.iter().position(|ask| {
            let is_next = ask.ends() && ask.txn().is_none_or(|txn| !unfinished.contains(&txn));
            unfinished.extend(ask.txn());
            is_next
        })
    }

    pub(super) fn new(dialer: Dialer, downloads: usize, workers: &BlockingPool) -> SessionState {
        SessionState {
            generation: 0,
            wake: None,
            dialer,
            downloads,
            waiting: VecDeque::new(),
            waiters: BTreeMap::new(),
            transactions: BTreeMap::new(),
            inlets: IncomingTransfers::new(workers, Arc::new(|_| {})),
            collectors: MemoryDownloads::default(),
            outlets: OutgoingTransfers::default(),
            last_tid: Tid::ZERO,
            handshake_waiters: Vec::new(),
            listeners: Vec::new(),
            watchers: Vec::new(),
            greeted: false,
            leaving: false,
            server_leaves: false,
            down: None,
            closed: None,
            after: Vec::new(),
            deferred: None,
        }
    }

    /// What arrives from here on is reported there.
    pub(super) fn receive_with(
        &mut self,
        workers: &BlockingPool,
        report: Arc<dyn Fn(SinkEvent) + Send + Sync>,
    ) {
        self.inlets = IncomingTransfers::new(workers, report);
    }

    /// Has something done as soon as the lock is free.
    pub(super) fn after(&mut self, act: impl FnOnce() + Send + 'static) {
        self.after.push(Box::new(act));
    }

    pub(super) fn take_after(&mut self) -> Vec<impl FnOnce() + Send + use<>> {
        std::mem::take(&mut self.after)
    }

    /// Leaves what is to be done to who drives the endpoint; `false` if that one has not asked for it.
    pub(super) fn defer(&mut self) -> bool {
        let Some(deferred) = &mut self.deferred else { return false };
        deferred.extend(self.after.drain(..));
        true
    }

    /// The server has said something that gets us on.
    pub(super) fn heard(&mut self) {
        self.dialer.heard();
    }

    pub(super) fn event(&mut self, event: client::Event) {
        match event {
            client::Event::Connected(welcome) => {
                let missed = self.greeted && welcome.last_tid > self.last_tid;
                (self.greeted, self.down) = (true, None);
                self.last_tid = self.last_tid.max(welcome.last_tid);
                if missed {
                    self.tell(&Invalidation { tid: welcome.last_tid, oids: None });
                }
                self.happened(&ConnectionEvent::Connected { address: self.dialer.address() });
                let handshake_waiters = std::mem::take(&mut self.handshake_waiters);
                self.after(|| handshake_waiters.into_iter().for_each(|greeter| greeter(Ok(()))));
            }
            // The connection is dead, and says why to who drives it.
            client::Event::Refused(_) => {}
            client::Event::Reply { id, result } => {
                self.heard();
                self.reply(id, result);
            }
            client::Event::Invalidate { tid, oids } => {
                self.last_tid = self.last_tid.max(tid);
                self.tell(&Invalidation { tid, oids: Some(oids.into()) });
            }
            client::Event::Transfer(event) => self.transfer(event),
            client::Event::Goodbye => {
                tracing::info!("the server is stopping");
                self.server_leaves = true;
            }
        }
    }

    fn transfer(&mut self, event: TransferEvent) {
        match self.collectors.event(event) {
            Collected::Some => {}
            Collected::All(to, bytes, digest) => self.after(move || to.finish(bytes, digest)),
            Collected::Elsewhere(event, target) => {
                if let (TransferEvent::Started { transfer, .. }, Some(target)) = (&event, target) {
                    self.inlets.expect(*transfer, Box::new(DownloadSink::new(target)));
                }
                self.inlets.event(event);
            }
            Collected::Aborted(to, reason) => self.after(move || to.abort(reason)),
        }
    }

    fn tell(&mut self, invalidation: &Invalidation) {
        self.listeners.retain_mut(|listener| listener(invalidation));
    }

    /// Tells the watchers.
    pub(super) fn happened(&mut self, event: &ConnectionEvent) {
        self.watchers.retain_mut(|watcher| watcher(event));
    }

    fn reply(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if let Ok(Reply::Finished { tid }) = result {
            self.last_tid = self.last_tid.max(tid);
        }
        match (self.waiters.remove(&id), result) {
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
                self.waiting.push_back(Queued::Call { request, done });
            }
            (Some(Sent::Call { request, done }), result) => {
                self.ended_by(&request, &result);
                self.after(move || done(result.map_err(CallError::from)));
            }
            (Some(Sent::Upload { digest: Some(digest), done, .. }), Ok(_)) => {
                self.outlets.remove(id.into());
                self.after(move || done(Ok(digest)));
            }
            (Some(Sent::Upload { done, .. }), result) => {
                let source = self.outlets.take(id.into());
                // Done without having had the digest can not be: the machine refuses such an answer.
                let error = result.err().unwrap_or(RequestError::Cancelled);
                let error = match source {
                    Some(source) => source.explain(error),
                    None => error,
                };
                self.after(move || done(Err(error.into())));
            }
            (None, Err(reason)) => match self.collectors.remove(id.into()) {
                Some(to) => self.after(move || to.abort(reason)),
                None => self.inlets.abort(id.into(), Some(reason)),
            },
            (None, Ok(_)) => {}
        }
    }

    /// A transaction that an answer has brought to its end is forgotten.
    fn ended_by(&mut self, request: &Request, result: &Result<Reply, RequestError>) {
        let (Request::Vote { txn } | Request::Finish { txn } | Request::Commit { txn }) = request else {
            return;
        };
        let over = match result {
            Ok(Reply::Finished { .. }) => true,
            Ok(_) | Err(RequestError::WrongPhase { .. }) => false,
            Err(_) => true,
        };
        if over {
            self.transactions.remove(txn);
        }
    }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::{Config, Time, TxnMeta, buffered, server};
    use bytes::Bytes;

    use crate::client::dial::Addresses;
    use crate::client::handler::Handler;
    use crate::client::session::{ClientConfig, Session};
    use crate::io::ConnectionHandler;
    use blobferry_cache::{Cache, CacheConfig};

    use super::*;

    /// Moves everything that is said, both ways; what the server is asked for.
    fn exchange(endpoint: &mut Handler, server: &mut server::Connection) -> Vec<Request> {
        let (mut up, mut down, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        endpoint.transmit(Time::ZERO, &mut up, usize::MAX, false);
        let on_event = |asked: &mut Vec<Request>, server: &mut server::Connection, event| match event {
            server::Event::Hello { .. } => server.welcome(Tid::ZERO).unwrap(),
            server::Event::Request { id, request } => {
                let is_vote = matches!(request, Request::Vote { .. });
                server.reply(id, Ok(if is_vote { Reply::Voted } else { Reply::Done })).unwrap();
                asked.push(request);
            }
            _ => {}
        };
        buffered::receive(server, Time::ZERO, &up, &mut asked, on_event, |_, _, _| {}).unwrap();
        buffered::transmit(server, Time::ZERO, &mut down, usize::MAX, |_, _| Ok(()));
        endpoint.receive(Time::ZERO, Bytes::from(down)).unwrap();
        asked
    }

    #[test]
    fn a_commit_does_not_overtake_what_waits_for_the_next_connection_when_the_server_takes_leave() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheConfig::default()).unwrap();
        let session = Session::new(cache, &ClientConfig::default(), Addresses::from("nobody:1"), 0);
        let mut endpoint = session.converse(Time::ZERO, || {});
        let mut server = server::Connection::new(Time::ZERO, Config::default());
        exchange(&mut endpoint, &mut server);
        let [whole, part] = [1, 2].map(|n| TxnId([n; 16]));
        for txn in [whole, part] {
            session.call(Request::Begin { txn, meta: TxnMeta::default() }, Box::new(|_| {}));
        }
        assert_eq!(exchange(&mut endpoint, &mut server).len(), 2);
        server.goodbye().unwrap();
        exchange(&mut endpoint, &mut server);

        let store = Request::Store { txn: part, oid: Oid(1), base: Tid::ZERO, data: Vec::new() };
        for request in [store, Request::Commit { txn: part }, Request::Vote { txn: whole }] {
            session.call(request, Box::new(|_| {}));
        }
        assert_eq!(exchange(&mut endpoint, &mut server), [Request::Vote { txn: whole }]);
        assert_eq!(session.lock().state.waiting.len(), 2, "they wait for the next connection");
    }
}
