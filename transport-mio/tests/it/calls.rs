//! Many threads, many loops, and callbacks that do unusual things.

use std::sync::mpsc;
use std::time::Duration;

use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_transport_mio::{BlobSource, CallError, Client, Ended, Invalidations, Server, Transaction};

use crate::support::{client, server};

#[test]
fn sixteen_threads_share_a_connection_with_large_transfers() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let oids = client.new_oids(16).unwrap();
    std::thread::scope(|threads| {
        for oid in &oids {
            let client = client.clone();
            threads.spawn(move || {
                let transaction = client.begin(TxnMeta::default()).unwrap();
                // Together these exceed what the server buffers, so it stops reading meanwhile.
                transaction.store(*oid, Tid::ZERO, vec![oid.0 as u8; 2 << 20]).unwrap();
                let blob = client.new_oids(1).unwrap()[0];
                let bytes = vec![oid.0 as u8; 500_000];
                transaction.store_reader(blob, Tid::ZERO, Vec::new(), &bytes[..]).unwrap();
                let tid = transaction.commit().unwrap();
                for _ in 0..50 {
                    assert_eq!(client.load_serial(blob, tid).unwrap().tid, tid);
                }
                assert!(client.load(*oid).unwrap().data == vec![oid.0 as u8; 2 << 20]);
                let range = client.load_range(BlobId { oid: blob, tid }, 499_990..600_000).unwrap();
                assert_eq!(&range[..], [oid.0 as u8; 10]);
            });
        }
    });
    client.close();
    server.stop();
}

#[test]
fn connections_on_several_loops_are_notified_of_each_other() {
    let home = tempfile::tempdir().unwrap();
    let server = server(3);
    let address = server.local_addr().to_string();
    let clients: Vec<_> = (0..6).map(|_| client(&address, home.path())).collect();
    let mut receivers: Vec<_> = clients.iter().map(|client| client.invalidations()).collect();
    let tids: Vec<Tid> = clients
        .iter()
        .map(|client| {
            let transaction = client.begin(TxnMeta::default()).unwrap();
            let oid = client.new_oids(1).unwrap()[0];
            transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::bytes("blob")).unwrap();
            transaction.commit().unwrap()
        })
        .collect();
    for receiver in &mut receivers {
        assert!(receiver.take(tids.len()).map(|commit| commit.tid).eq(tids.iter().copied()));
        assert_eq!(receiver.try_next(), Ok(None));
    }
    // The server says goodbye to all clients, and then every connection ends.
    server.stop();
    for mut receiver in receivers {
        assert_eq!(receiver.next(), None);
        assert_eq!(receiver.try_next(), Err(Ended));
    }
    for client in clients {
        assert!(matches!(client.load(Oid::ROOT), Err(CallError::Disconnected { .. } | CallError::Usage(_))));
    }
}

#[test]
fn a_callback_may_drop_the_last_clone_of_a_client() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let session = client.session().clone();
    let (sender, answers) = mpsc::channel();
    session.load(Oid(1), move |answer| {
        drop(client);
        sender.send(answer.is_err()).unwrap();
    });
    assert!(answers.recv().unwrap());
    let (sender, answers) = mpsc::channel();
    session.load(Oid(1), move |answer| sender.send(answer).unwrap());
    assert!(matches!(answers.recv().unwrap(), Err(CallError::Disconnected { .. })));
}

#[test]
fn calls_and_notifications_end_with_the_server() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let mut invalidations = client.invalidations();
    let transaction = client.begin(TxnMeta::default()).unwrap();
    drop(server);
    assert_eq!(invalidations.next(), None);
    let stored = transaction.store(Oid(1), Tid::ZERO, Vec::new());
    assert!(matches!(stored, Err(CallError::Disconnected { .. })), "{stored:?}");
}

#[test]
fn a_notification_is_awaited_for_a_limited_time() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let mut invalidations = client.invalidations();
    assert_eq!(invalidations.next_timeout(Duration::from_millis(1)), Ok(None));
    let transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store(client.new_oids(1).unwrap()[0], Tid::ZERO, Vec::new()).unwrap();
    let tid = transaction.commit().unwrap();
    assert_eq!(invalidations.next_timeout(Duration::MAX).unwrap().unwrap().tid, tid);
    client.close();
    assert_eq!(invalidations.next_timeout(Duration::MAX), Err(Ended));
}

#[test]
fn a_revision_is_loaded_as_of_a_transaction() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let oid = client.new_oids(1).unwrap()[0];
    let mut tids = vec![Tid::ZERO];
    for record in 0..3 {
        let transaction = client.begin(TxnMeta::default()).unwrap();
        transaction.store(oid, *tids.last().unwrap(), vec![record]).unwrap();
        tids.push(transaction.commit().unwrap());
    }
    assert_eq!(client.load_at(oid, tids[0]).unwrap(), None);
    for (record, tid) in tids[1..].iter().enumerate() {
        assert_eq!(client.load_at(oid, *tid).unwrap().unwrap().data, [record as u8]);
    }
    assert_eq!(client.load_at(oid, client.last_tid()).unwrap().unwrap().data, [2]);
}

#[test]
fn handles_can_be_sent_to_and_shared_by_threads() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Client>();
    is_send_and_sync::<Transaction>();
    is_send_and_sync::<Invalidations>();
    is_send_and_sync::<Server>();
}
