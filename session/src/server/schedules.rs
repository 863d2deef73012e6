//! Transactions whose connections are lost, tried under thousands of schedules: see [`crate::schedules`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blobferry_platform::sync::{Arc, Mutex, explore, hold_time, mpsc, thread};
use blobferry_protocol::{Oid, RequestError, RequestId, TxnMeta};

use super::detached::{DetachedTransactions, Part, TransactionLease};
use super::mailbox::{Mailbox, Message};
use crate::schedules::{patient, txn};
use blobferry_store::{MemoryStore, Store};

const SECOND: Duration = Duration::from_secs(1);
const OID: Oid = Oid(1);

/// A server on which one transaction is open, and part of a blob has arrived.
#[derive(Clone)]
struct Server {
    store: Arc<MemoryStore>,
    keeper: Arc<DetachedTransactions>,
    /// How many have the transaction at this moment.
    owners: Arc<AtomicUsize>,
}

/// What becomes of the transaction on a connection.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Lost,
    Aborted,
}

struct Connection {
    mailbox: Arc<Mailbox>,
    woken: mpsc::Receiver<()>,
}

impl Connection {
    fn new() -> Connection {
        let (wake, woken) = mpsc::channel();
        let wake = Mutex::new(wake);
        Connection { mailbox: Mailbox::new(Box::new(move || _ = wake.lock().send(()))), woken }
    }

    /// Waits until it is told what has become of its wish.
    fn attached(&self) -> Result<Arc<TransactionLease>, RequestError> {
        loop {
            self.woken.recv().expect("it was forgotten");
            for news in self.mailbox.take() {
                if let Message::Attached { attached, .. } = news {
                    return attached;
                }
            }
        }
    }
}

impl Server {
    fn new() -> Server {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        let keeper = DetachedTransactions::new(store.clone(), SECOND);
        Server { store, keeper, owners: Arc::default() }
    }

    /// A connection that begins the transaction and is lost at some moment, or ends it.
    fn begin(&self, then: Then) -> thread::JoinHandle<()> {
        let (server, connection) = (self.clone(), Connection::new());
        self.store.begin(txn(1), TxnMeta::default()).unwrap();
        let hold = self.keeper.hold(txn(1), &connection.mailbox);
        let stage = self.store.stage(10).unwrap();
        hold.keep(OID, Part { request: RequestId(1), stage, size: 10, written: 5 });
        thread::spawn(move || {
            server.own(hold, then);
            drop(connection);
        })
    }

    /// A connection that wants to go on with it; says whether it could.
    fn attach(&self, then: Then) -> thread::JoinHandle<bool> {
        let server = self.clone();
        thread::spawn(move || {
            let connection = Connection::new();
            server.keeper.attach(txn(1), RequestId(1), &connection.mailbox);
            let attached = connection.attached();
            let could = attached.is_ok();
            attached.into_iter().for_each(|hold| server.own(hold, then));
            let told =
                connection.mailbox.take().into_iter().any(|news| matches!(news, Message::Attached { .. }));
            assert!(!told, "told twice");
            could
        })
    }

    fn own(&self, hold: Arc<TransactionLease>, then: Then) {
        assert_eq!(self.owners.fetch_add(1, Ordering::SeqCst), 0, "two have it at once");
        thread::yield_now();
        if then == Then::Aborted {
            hold.over();
            self.store.abort(hold.txn());
        }
        // A job in its lane may have the hold a little longer than the connection.
        let job = thread::spawn({
            let hold = hold.clone();
            move || drop(hold)
        });
        self.owners.fetch_sub(1, Ordering::SeqCst);
        drop(hold);
        job.join().unwrap();
    }

    /// Nothing is open, kept or staged when the time is over.
    fn check(self) {
        while self.keeper.count() > 0 || self.store.counts().open > 0 || self.store.counts().staged_bytes > 0
        {
            thread::yield_now();
        }
        self.store.close();
    }
}

#[test]
fn a_transaction_that_is_lost_and_wanted_has_one_owner_or_ends() {
    explore(3000, || {
        let server = Server::new();
        let threads = [server.attach(Then::Lost), server.attach(Then::Aborted), server.attach(Then::Lost)];
        server.begin(Then::Lost).join().unwrap();
        threads.into_iter().for_each(|thread| _ = thread.join().unwrap());
        server.check();
    });
}

/// No time passes: so whoever wants it while somebody has it gets it from him.
#[test]
fn who_waits_for_a_transaction_gets_it_from_who_loses_it() {
    explore(3000, || {
        hold_time();
        let server = Server::new();
        let begins = server.begin(Then::Lost);
        let (first, second) = (server.attach(Then::Lost), server.attach(Then::Lost));
        begins.join().unwrap();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        // One may have taken the other's place in line, but not its own turn.
        assert!(first || second);
        assert!(server.attach(Then::Aborted).join().unwrap(), "it is kept");
        blobferry_platform::sync::let_time_pass();
        server.check();
    });
}

#[test]
fn a_transaction_that_was_aborted_is_nobodys() {
    explore(3000, || {
        let server = Server::new();
        let begins = server.begin(Then::Aborted);
        let attaches = server.attach(Then::Lost);
        let aborts = {
            let server = server.clone();
            thread::spawn(move || server.keeper.abort(txn(1)))
        };
        begins.join().unwrap();
        assert!(!attaches.join().unwrap());
        aborts.join().unwrap();
        server.check();
    });
}

#[test]
fn a_server_that_stops_keeps_nothing_and_answers_everybody() {
    explore(3000, || {
        hold_time();
        let server = Server::new();
        let begins = server.begin(Then::Lost);
        let attaches = [server.attach(Then::Lost), server.attach(Then::Lost)];
        let stops = {
            let server = server.clone();
            thread::spawn(move || server.keeper.stop())
        };
        begins.join().unwrap();
        attaches.into_iter().for_each(|thread| _ = thread.join().unwrap());
        stops.join().unwrap();
        server.check();
    });
}
