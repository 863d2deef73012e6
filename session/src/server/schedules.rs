//! Detached transactions under thousands of schedules: see [`crate::schedules`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blobferry_platform::sync::{Arc, Mutex, explore, hold_time, mpsc, thread};
use blobferry_protocol::{Oid, RequestError, RequestId, TxnMeta};
use blobferry_store::{MemoryStore, Store};

use super::detached::{DetachedTransactions, Part, TransactionLease};
use super::mailbox::Mailbox;
use super::message::Message;
use crate::schedules::{patient, txn};

const SECOND: Duration = Duration::from_secs(1);
const OID: Oid = Oid(1);

/// A server on which one transaction is open, and part of a blob has arrived.
#[derive(Clone)]
struct Server {
    store: Arc<MemoryStore>,
    detached: Arc<DetachedTransactions>,
    /// The number of connections that own the transaction at this moment.
    owners: Arc<AtomicUsize>,
}

/// What becomes of the transaction on a connection.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Lost,
    Aborted,
}

struct Connection {
    mailbox: Arc<Mailbox<Message>>,
    woken: mpsc::Receiver<()>,
}

impl Connection {
    fn new() -> Connection {
        let (wake, woken) = mpsc::channel();
        let wake = Mutex::new(wake);
        Connection { mailbox: Mailbox::new(Box::new(move || _ = wake.lock().send(()))), woken }
    }

    /// Waits for the answer to the request to attach.
    fn attached(&self) -> Result<Arc<TransactionLease>, RequestError> {
        loop {
            self.woken.recv().expect("no answer came");
            for message in self.mailbox.take() {
                if let Message::Attached { attached, .. } = message {
                    return attached;
                }
            }
        }
    }
}

impl Server {
    fn new() -> Server {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        let detached = DetachedTransactions::new(store.clone(), SECOND);
        Server { store, detached, owners: Arc::default() }
    }

    /// Starts a connection that begins the transaction, and is lost at some moment or ends it.
    fn begin(&self, then: Then) -> thread::JoinHandle<()> {
        let (server, connection) = (self.clone(), Connection::new());
        self.store.begin(txn(1), TxnMeta::default()).unwrap();
        let lease = self.detached.lease(txn(1), &connection.mailbox);
        let stage = self.store.stage(10).unwrap();
        lease.retain_part(OID, Part { request: RequestId(1), stage, size: 10, written: 5 });
        thread::spawn(move || {
            server.own(lease, then);
            drop(connection);
        })
    }

    /// Starts a connection that attaches the transaction. Returns whether it could.
    fn attach(&self, then: Then) -> thread::JoinHandle<bool> {
        let server = self.clone();
        thread::spawn(move || {
            let connection = Connection::new();
            server.detached.attach(txn(1), RequestId(1), &connection.mailbox);
            let attached = connection.attached();
            let could = attached.is_ok();
            attached.into_iter().for_each(|lease| server.own(lease, then));
            let again = |message| matches!(message, Message::Attached { .. });
            assert!(!connection.mailbox.take().into_iter().any(again), "answered twice");
            could
        })
    }

    fn own(&self, lease: Arc<TransactionLease>, then: Then) {
        assert_eq!(self.owners.fetch_add(1, Ordering::SeqCst), 0, "two connections own it at once");
        thread::yield_now();
        if then == Then::Aborted {
            lease.end();
            self.store.abort(lease.txn());
        }
        // A job in the strand may have the lease a little longer than the connection.
        let job = thread::spawn({
            let lease = lease.clone();
            move || drop(lease)
        });
        self.owners.fetch_sub(1, Ordering::SeqCst);
        drop(lease);
        job.join().unwrap();
    }

    /// Waits until nothing is open, detached or staged.
    fn check(self) {
        while self.detached.count() > 0
            || self.store.counts().open > 0
            || self.store.counts().staged_bytes > 0
        {
            thread::yield_now();
        }
        self.store.close();
    }
}

#[test]
fn contended_transaction_has_one_owner_or_ends() {
    explore(3000, || {
        let server = Server::new();
        let threads = [server.attach(Then::Lost), server.attach(Then::Aborted), server.attach(Then::Lost)];
        server.begin(Then::Lost).join().unwrap();
        threads.into_iter().for_each(|thread| _ = thread.join().unwrap());
        server.check();
    });
}

/// No time passes, so a connection that waits for the transaction gets it from its owner.
#[test]
fn waiting_connection_gets_the_transaction_from_a_lost_one() {
    explore(3000, || {
        hold_time();
        let server = Server::new();
        let begins = server.begin(Then::Lost);
        let (first, second) = (server.attach(Then::Lost), server.attach(Then::Lost));
        begins.join().unwrap();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        // A later connection replaces an earlier one that waits; one of them gets it.
        assert!(first || second);
        assert!(server.attach(Then::Aborted).join().unwrap(), "it is detached");
        blobferry_platform::sync::let_time_pass();
        server.check();
    });
}

#[test]
fn aborted_transaction_cannot_be_attached() {
    explore(3000, || {
        let server = Server::new();
        let begins = server.begin(Then::Aborted);
        let attaches = server.attach(Then::Lost);
        let aborts = {
            let server = server.clone();
            thread::spawn(move || server.detached.abort(txn(1)))
        };
        begins.join().unwrap();
        assert!(!attaches.join().unwrap());
        aborts.join().unwrap();
        server.check();
    });
}

#[test]
fn stopping_server_detaches_nothing_and_answers_all() {
    explore(3000, || {
        hold_time();
        let server = Server::new();
        let begins = server.begin(Then::Lost);
        let attaches = [server.attach(Then::Lost), server.attach(Then::Lost)];
        let stops = {
            let server = server.clone();
            thread::spawn(move || server.detached.stop())
        };
        begins.join().unwrap();
        attaches.into_iter().for_each(|thread| _ = thread.join().unwrap());
        stops.join().unwrap();
        server.check();
    });
}
