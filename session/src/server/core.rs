//! What all connections of a server share: the store, the pool, the counters, and the announcement of commits.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::time::Duration;

use blobferry_platform::pool::BlockingPool;
use blobferry_platform::sync::atomic::{AtomicBool, Ordering};
use blobferry_platform::sync::{Arc, Mutex, MutexGuard, Weak};
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{Oid, Refusal, Tid};
use blobferry_store::{Store, Subscription};

use crate::server::config::ServerConfig;
use crate::server::counters::{Counters, rss_bytes};
use crate::server::detached::DetachedTransactions;
use crate::server::inline_policy::InlinePolicy;
use crate::server::mailbox::Mailbox;
use crate::server::message::Message;
use crate::server::verified::RecentlyVerified;

/// Pause before the next attempt to accept, after an error of the system: long enough for descriptors to be freed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections of a server share. Clones are the same server.
#[derive(Clone)]
pub struct ServerCore(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    config: ServerConfig,
    workers: BlockingPool,
    counters: Counters,
    verified: RecentlyVerified,
    connections: Mutex<Connections>,
    stopping: AtomicBool,
    detached: Arc<DetachedTransactions>,
    inline_policy: Arc<InlinePolicy>,
    _subscription: Subscription,
}

/// The mailboxes of all connections, by number.
#[derive(Default)]
struct Connections {
    last: u64,
    mailboxes: BTreeMap<u64, Arc<Mailbox<Message>>>,
    /// The last commit that was posted to all mailboxes. For a moment readers do not see it yet.
    last_announced: Option<(Tid, Arc<[Oid]>)>,
}

impl std::fmt::Debug for ServerCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerCore({:?})", self.0.counters)
    }
}

impl ServerCore {
    /// Creates a server on a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, config: ServerConfig) -> ServerCore {
        ServerCore(Arc::new_cyclic(|weak: &Weak<Shared>| {
            let weak = weak.clone();
            let subscription = store.subscribe(Arc::new(move |tid, oids| {
                if let Some(shared) = weak.upgrade() {
                    shared.committed(tid, oids);
                }
            }));
            Shared {
                detached: DetachedTransactions::new(store.clone(), config.detach_timeout),
                store,
                workers: BlockingPool::new(config.workers),
                config,
                counters: Counters::default(),
                verified: RecentlyVerified::default(),
                connections: Mutex::default(),
                stopping: AtomicBool::new(false),
                inline_policy: Arc::new(InlinePolicy::new()),
                _subscription: subscription,
            }
        }))
    }

    /// Returns the store that requests are answered from.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    pub(super) fn workers(&self) -> &BlockingPool {
        &self.0.workers
    }

    pub(super) fn detached(&self) -> &Arc<DetachedTransactions> {
        &self.0.detached
    }

    pub(super) fn inline_policy(&self) -> &Arc<InlinePolicy> {
        &self.0.inline_policy
    }

    pub(super) fn verified(&self) -> &RecentlyVerified {
        &self.0.verified
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Begins a graceful stop: new clients are refused, and every handler says goodbye when it is driven next. All
    /// handlers are woken for that.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.0.detached.stop();
        let mailboxes: Vec<_> = self.0.connections().mailboxes.values().cloned().collect();
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }

    /// Returns whether [`stop`](Self::stop) was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    /// Logs that a connection could not be accepted. Returns how long to wait before the next attempt.
    #[must_use]
    pub fn not_accepted(&self, error: &io::Error) -> Duration {
        match error.kind() {
            // The peer was gone already: another one may wait behind it.
            ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted => {
                Duration::ZERO
            }
            // Most likely there are no free descriptors. Some come back when other connections end.
            _ => {
                tracing::warn!(target: "blobferry::server", %error, "a connection could not be accepted");
                ACCEPT_PAUSE
            }
        }
    }

    /// Logs that the time for a graceful stop is over, and how many connections are closed as they are.
    pub fn grace_is_over(&self, connections: usize) {
        if connections > 0 {
            tracing::warn!(target: "blobferry::server", connections, "not everything was finished in time: closing");
        }
    }

    /// Returns all counters, by name.
    pub(super) fn status(&self) -> Vec<(String, u64)> {
        let counters = self.0.counters.named();
        let own = [
            ("kept", self.0.detached.count()),
            ("last_tid", self.0.store.last_tid().0),
            ("rss_bytes", rss_bytes()),
        ];
        let all = own.into_iter().chain(counters).chain(self.0.store.counts().named());
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Registers a connection. Every commit after the returned one is posted to its mailbox.
    pub(super) fn admit(&self, mailbox: &Arc<Mailbox<Message>>) -> Result<(Membership, Tid), Refusal> {
        let mut connections = self.0.connections();
        if self.is_stopping() {
            return Err(Refusal::Stopping);
        }
        if connections.mailboxes.len() as u64 >= self.0.config.connections {
            return Err(Refusal::Full);
        }
        connections.last += 1;
        let number = connections.last;
        connections.mailboxes.insert(number, mailbox.clone());
        self.0.counters.connections.add(1);
        self.0.counters.accepted.add(1);
        let last = self.0.store.last_tid();
        let missed = connections.last_announced.clone().filter(|(tid, _)| *tid > last);
        drop(connections);
        if let Some((tid, oids)) = missed {
            mailbox.post(Message::Committed { tid, oids });
        }
        Ok((Membership { core: self.clone(), number }, last))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.detached.stop();
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock()
    }

    fn committed(&self, tid: Tid, oids: &[Oid]) {
        if planted(Bug::DropInvalidation) && self.store.counts().commits % 8 == 7 {
            return;
        }
        let oids: Arc<[Oid]> = oids.into();
        let mut connections = self.connections();
        connections.last_announced = Some((tid, oids.clone()));
        let mailboxes: Vec<_> = connections.mailboxes.values().cloned().collect();
        drop(connections);
        for mailbox in mailboxes {
            mailbox.post(Message::Committed { tid, oids: oids.clone() });
        }
    }
}

/// The registration of a connection, until it is dropped.
pub(super) struct Membership {
    core: ServerCore,
    number: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.core.0.connections().mailboxes.remove(&self.number);
        self.core.0.counters.connections.sub(1);
    }
}
