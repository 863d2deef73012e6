//! Callers drive the connection that they wait on, in turns. Each gets its answer, or an error, if another caller leaves,
//! panics or calls from a callback, and if the connection or the client ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use blobferry_protocol::{Oid, Revision, Tid, TxnMeta};
use blobferry_transport_mio::{BlobSource, CallError, Client, CommitError, Server, Transaction, wait};

use crate::support::{client, server};

/// How often a race is tried.
const ROUNDS: usize = 20;

fn connect(server: &Server, dir: &Path) -> Client {
    client(&server.local_addr().to_string(), dir)
}

/// Stores an object.
fn object(client: &Client) -> Oid {
    let oid = client.new_oids(1).unwrap()[0];
    let transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store(oid, Tid::ZERO, vec![1]).unwrap();
    transaction.commit().unwrap();
    oid
}

/// Returns a transaction after its vote: others that want the object wait until it is over.
fn holding(client: &Client, oid: Oid) -> Transaction {
    let base = client.load(oid).unwrap().tid;
    let mut transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store(oid, base, vec![2]).unwrap();
    transaction.vote().unwrap();
    transaction
}

/// Returns a transaction whose vote has to wait for that one.
fn blocked(client: &Client, oid: Oid) -> Transaction {
    let base = client.load(oid).unwrap().tid;
    let transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store(oid, base, vec![3]).unwrap();
    transaction
}

/// Loads an object, and calls back.
fn load(client: &Client, oid: Oid, then: impl FnOnce(Result<Revision, CallError>) + Send + 'static) {
    client.session().load(oid, Box::new(then));
}

#[test]
fn many_callers_each_get_their_own_answers() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = connect(&server, home.path());
    let oids: Vec<Oid> = (0..32).map(|_| object(&client)).collect();
    thread::scope(|threads| {
        for oid in &oids {
            threads.spawn(|| {
                let tid = client.load(*oid).unwrap().tid;
                (0..200).for_each(|_| assert_eq!(client.load(*oid).unwrap().tid, tid));
            });
        }
    });
    client.close();
}

#[test]
fn a_long_wait_is_answered_while_others_come_and_go() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = connect(&server, home.path());
    let oid = object(&client);
    for _ in 0..ROUNDS {
        let first = holding(&client, oid);
        let patient = blocked(&client, oid);
        thread::scope(|threads| {
            let patient = threads.spawn(move || patient.commit());
            let others: Vec<_> = (0..3).map(|_| threads.spawn(|| client.load(oid).unwrap())).collect();
            (0..20).for_each(|_| drop(client.load(oid).unwrap()));
            others.into_iter().for_each(|other| drop(other.join().unwrap()));
            first.finish().unwrap();
            assert!(matches!(patient.join().unwrap(), Err(CommitError::Conflict { .. })));
        });
    }
    client.close();
}

#[test]
fn callers_get_an_error_when_the_connection_is_lost() {
    let home = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let server = server(1);
        let client = connect(&server, &home.path().join(round.to_string()));
        let oid = object(&client);
        let _first = holding(&client, oid);
        let waiting: Vec<_> = (0..3).map(|_| blocked(&client, oid)).collect();
        thread::scope(|threads| {
            let commit = |waits: Transaction| threads.spawn(move || waits.commit());
            let waiting: Vec<_> = waiting.into_iter().map(commit).collect();
            client.load(oid).unwrap();
            drop(server);
            for waits in waiting {
                let answer = waits.join().unwrap();
                assert!(matches!(answer, Err(CommitError::Call(_))), "{answer:?}");
            }
        });
    }
}

#[test]
fn a_waiting_commit_fails_when_its_client_is_dropped() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let other = connect(&server, &home.path().join("other"));
    for round in 0..ROUNDS {
        // One object each: the server may commit before it learns that the client is gone.
        let oid = object(&other);
        let first = holding(&other, oid);
        let client = connect(&server, &home.path().join(round.to_string()));
        let waits = blocked(&client, oid);
        let waits = thread::spawn(move || waits.commit());
        client.load(oid).unwrap();
        drop(client);
        let answer = waits.join().unwrap();
        assert!(matches!(answer, Err(CommitError::Call(_))), "{answer:?}");
        first.abort().unwrap();
    }
}

#[test]
fn a_close_waits_for_the_calls_of_other_threads() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let other = connect(&server, &home.path().join("other"));
    let oid = object(&other);
    for round in 0..ROUNDS {
        let client = connect(&server, &home.path().join(round.to_string()));
        let transaction = holding(&client, oid);
        let closing = client.clone();
        let closes = thread::spawn(move || closing.close());
        transaction.finish().unwrap();
        closes.join().unwrap();
    }
}

#[test]
fn a_callback_may_wait_for_its_own_client() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = connect(&server, home.path());
    let oid = object(&client);
    for _ in 0..ROUNDS {
        let (sender, answers) = mpsc::channel();
        let again = client.clone();
        load(&client, oid, move |answer| {
            let inner = again.load(oid).map(|revision| revision.tid);
            sender.send((answer.unwrap().tid, inner.unwrap())).unwrap();
        });
        // This thread drives the connection meanwhile.
        client.load(oid).unwrap();
        let (outer, inner) = answers.recv().unwrap();
        assert_eq!(outer, inner);
    }
    client.close();
}

#[test]
fn a_waiting_callback_fails_when_the_connection_is_lost() {
    let home = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let server = server(1);
        let client = connect(&server, &home.path().join(round.to_string()));
        let oid = object(&client);
        let _first = holding(&client, oid);
        let waits = blocked(&client, oid);
        let (sender, answers) = mpsc::channel();
        load(&client, oid, move |answer| {
            sender.send(answer.is_ok()).unwrap();
            sender.send(waits.commit().is_err()).unwrap();
        });
        assert!(answers.recv().unwrap());
        drop(server);
        assert!(answers.recv().unwrap());
    }
}

#[test]
fn callbacks_of_two_clients_may_wait_for_each_other() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let clients = ["a", "b"].map(|name| connect(&server, &home.path().join(name)));
    let oid = object(&clients[0]);
    for _ in 0..ROUNDS {
        thread::scope(|threads| {
            for [one, other] in [[0, 1], [1, 0]].map(|pair| pair.map(|at| &clients[at])) {
                threads.spawn(move || {
                    let (sender, answers) = mpsc::channel();
                    let nested = other.clone();
                    load(one, oid, move |_| sender.send(nested.load(oid).is_ok()).unwrap());
                    (0..5).for_each(|_| drop(one.load(oid).unwrap()));
                    assert!(answers.recv().unwrap());
                });
            }
        });
    }
}

#[test]
fn a_panicking_callback_harms_no_other_call() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = connect(&server, home.path());
    let oid = object(&client);
    for _ in 0..ROUNDS {
        load(&client, oid, |_| panic!("on purpose"));
        client.load(oid).unwrap();
    }
    client.close();
}

#[test]
fn a_panicking_call_leaves_the_connection_to_others() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = connect(&server, home.path());
    let oid = object(&client);
    for _ in 0..ROUNDS {
        let (sender, answers) = mpsc::channel();
        let call = || {
            wait::<(), CallError>(|_| {
                load(&client, oid, move |answer| sender.send(answer.is_ok()).unwrap());
                panic!("on purpose");
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        assert!(answers.recv().unwrap());
        client.load(oid).unwrap();
    }
    client.close();
}

#[test]
fn notifications_come_while_no_call_is_under_way() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let clients = ["a", "b"].map(|name| connect(&server, &home.path().join(name)));
    let mut invalidations = clients[0].invalidations();
    let oid = object(&clients[1]);
    for _ in 0..ROUNDS {
        let tid = invalidations.next().unwrap().tid;
        assert_eq!(clients[0].load(oid).unwrap().tid, tid);
        (0..5).for_each(|_| drop(clients[0].load(oid).unwrap()));
        let transaction = blocked(&clients[1], oid);
        transaction.commit().unwrap();
    }
}

#[test]
fn a_call_that_another_thread_sends_is_answered() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = connect(&server, home.path());
    let oids = client.new_oids(ROUNDS as u32).unwrap();
    for oid in oids {
        let transaction = client.begin(TxnMeta::default()).unwrap();
        // A pool thread takes the blob, and then sends it.
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::bytes("a blob")).unwrap();
        transaction.commit().unwrap();
        let session = client.session().clone();
        let answer = wait(|done| drop(thread::spawn(move || session.load(oid, done))));
        assert_eq!(answer.map_err(|error: CallError| error).unwrap().data, b"");
    }
    client.close();
}
