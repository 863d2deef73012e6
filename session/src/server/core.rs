//! What all sessions of a server share: the store, the threads, the counters, and who is told of commits.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::time::Duration;

use blobferry_platform::pool::BlockingPool;
use blobferry_platform::sync::atomic::{AtomicBool, Ordering};
use blobferry_platform::sync::{Arc, Mutex, MutexGuard, Weak};
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{Config, Oid, Refusal, Tid};

use crate::server::counters::{Counters, rss_bytes};
use crate::server::detached::DetachedTransactions;
use crate::server::inline_policy::InlinePolicy;
use crate::server::mailbox::{Mailbox, Message};
use crate::server::verified::RecentlyVerified;
use blobferry_store::{Store, Subscription};

/// How a server behaves, whatever its transport.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// How its connections behave.
    pub connection: Config,
    /// Connections at once; further ones are refused.
    pub connections: u64,
    /// Threads for what blocks, at most.
    pub workers: usize,
    /// How long a graceful stop waits for what is under way: voted transactions to be finished or aborted, answers to
    /// be sent. After that connections are closed as they are, and their transactions aborted.
    pub grace: Duration,
    /// How long an open transaction whose connection was lost is kept for its client to come back, with what has arrived
    /// of its blobs. Its locks are never kept: a transaction that was voted for is aborted at once.
    pub keep: Duration,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            connection: Config::default(),
            connections: 16_384,
            workers: 16,
            grace: Duration::from_secs(5),
            keep: Duration::from_secs(60),
        }
    }
}

/// What all sessions of a server share. Clones are the same service.
#[derive(Clone)]
pub struct ServerCore(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    config: ServerConfig,
    workers: BlockingPool,
    counters: Counters,
    proofs: RecentlyVerified,
    sessions: Mutex<Sessions>,
    stopping: AtomicBool,
    keeper: Arc<DetachedTransactions>,
    pace: Arc<InlinePolicy>,
    _subscription: Subscription,
}

#[derive(Default)]
struct Sessions {
    last: u64,
    mailboxes: BTreeMap<u64, Arc<Mailbox>>,
    /// The last commit that all of them were told of. For a moment readers do not see it yet.
    told: Option<(Tid, Arc<[Oid]>)>,
}

impl std::fmt::Debug for ServerCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service({:?})", self.0.counters)
    }
}

impl ServerCore {
    /// A service on a store.
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
                keeper: DetachedTransactions::new(store.clone(), config.keep),
                store,
                workers: BlockingPool::new(config.workers),
                config,
                counters: Counters::default(),
                proofs: RecentlyVerified::default(),
                sessions: Mutex::default(),
                stopping: AtomicBool::new(false),
                pace: Arc::new(InlinePolicy::new()),
                _subscription: subscription,
            }
        }))
    }

    /// The store that it answers from.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// How it was configured.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    pub(super) fn workers(&self) -> &BlockingPool {
        &self.0.workers
    }

    pub(super) fn keeper(&self) -> &Arc<DetachedTransactions> {
        &self.0.keeper
    }

    pub(super) fn pace(&self) -> &Arc<InlinePolicy> {
        &self.0.pace
    }

    pub(super) fn proofs(&self) -> &RecentlyVerified {
        &self.0.proofs
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// From here on new clients are refused, and every session says goodbye as soon as it is driven again: all are
    /// woken for that.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.0.keeper.stop();
        let mailboxes: Vec<Arc<Mailbox>> = self.0.sessions().mailboxes.values().cloned().collect();
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }

    /// Has [`stop`](Self::stop) been called?
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    /// A connection could not be accepted: tells the operator, and how long to wait before the next attempt.
    #[must_use]
    pub fn not_accepted(&self, error: &io::Error) -> Duration {
        match error.kind() {
            // A peer that was gone at once: the next one may wait behind it.
            ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted => {
                Duration::ZERO
            }
            // Most likely out of descriptors, and some come back when other connections end.
            _ => {
                tracing::warn!(%error, "a connection could not be accepted");
                Duration::from_millis(50)
            }
        }
    }

    /// The time for a graceful stop is over: tells the operator how many connections are closed as they are.
    pub fn grace_is_over(&self, connections: usize) {
        if connections > 0 {
            tracing::warn!(connections, "not everything came to its end in time: closing");
        }
    }

    /// Everything that is counted, by name.
    pub(super) fn status(&self) -> Vec<(String, u64)> {
        let counters = self.0.counters.named();
        let own = [
            ("kept", self.0.keeper.count()),
            ("last_tid", self.0.store.last_tid().0),
            ("rss_bytes", rss_bytes()),
        ];
        let all = own.into_iter().chain(counters).chain(self.0.store.counts().named());
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Takes a session in, so that it hears of every commit after the one that is returned.
    pub(super) fn admit(&self, mailbox: &Arc<Mailbox>) -> Result<(Membership, Tid), Refusal> {
        let mut sessions = self.0.sessions();
        if self.is_stopping() {
            return Err(Refusal::Stopping);
        }
        if sessions.mailboxes.len() as u64 >= self.0.config.connections {
            return Err(Refusal::Full);
        }
        sessions.last += 1;
        let number = sessions.last;
        sessions.mailboxes.insert(number, mailbox.clone());
        self.0.counters.connections.add(1);
        self.0.counters.accepted.add(1);
        let last = self.0.store.last_tid();
        let missed = sessions.told.clone().filter(|(tid, _)| *tid > last);
        drop(sessions);
        if let Some((tid, oids)) = missed {
            mailbox.post(Message::Committed { tid, oids });
        }
        Ok((Membership { service: self.clone(), number }, last))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.stop();
    }
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock()
    }

    fn committed(&self, tid: Tid, oids: &[Oid]) {
        if planted(Bug::DropInvalidation) && self.store.counts().commits % 8 == 7 {
            return;
        }
        let oids: Arc<[Oid]> = oids.into();
        let mut sessions = self.sessions();
        sessions.told = Some((tid, oids.clone()));
        let mailboxes: Vec<Arc<Mailbox>> = sessions.mailboxes.values().cloned().collect();
        drop(sessions);
        for mailbox in mailboxes {
            mailbox.post(Message::Committed { tid, oids: oids.clone() });
        }
    }
}

/// A session's place among the others, until it is dropped.
pub(super) struct Membership {
    service: ServerCore,
    number: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.service.0.sessions().mailboxes.remove(&self.number);
        self.service.0.counters.connections.sub(1);
    }
}
