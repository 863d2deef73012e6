//! Many threads, many loops, and callbacks that do unusual things.

use std::sync::mpsc;

use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_transport_mio::{BlobSource, CallError};

use crate::support::{client, server};

#[test]
fn sixteen_threads_share_a_connection_while_large_records_and_blobs_are_under_way() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let oids = client.new_oids(16).unwrap();
    std::thread::scope(|threads| {
        for oid in &oids {
            let client = client.clone();
            threads.spawn(move || {
                let mut transaction = client.begin(TxnMeta::default()).unwrap();
                // Together more than the server wants to have before it: it stops reading for a while.
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
                assert_eq!(range, [oid.0 as u8; 10]);
            });
        }
    });
    client.close();
    server.stop();
}

#[test]
fn connections_are_spread_over_loops_and_hear_of_each_other() {
    let home = tempfile::tempdir().unwrap();
    let server = server(3);
    let address = server.local_addr().to_string();
    let clients: Vec<_> = (0..6).map(|_| client(&address, home.path())).collect();
    let mut heard: Vec<_> = clients.iter().map(|client| client.invalidations()).collect();
    let tids: Vec<Tid> = clients
        .iter()
        .map(|client| {
            let mut transaction = client.begin(TxnMeta::default()).unwrap();
            let oid = client.new_oids(1).unwrap()[0];
            transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::bytes("blob")).unwrap();
            transaction.commit().unwrap()
        })
        .collect();
    for told in &mut heard {
        assert!(told.take(tids.len()).map(|told| told.tid).eq(tids.iter().copied()));
        assert_eq!(told.try_next(), None);
    }
    // Nobody says goodbye: the server does, to all of them, and then everything ends.
    server.stop();
    assert!(heard.into_iter().all(|mut told| told.next().is_none()));
    for client in clients {
        assert!(matches!(client.load(Oid::ROOT), Err(CallError::Disconnected { .. } | CallError::Usage(_))));
    }
}

#[test]
fn a_callback_may_drop_the_last_of_a_client() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let session = client.session().clone();
    let (tell, told) = mpsc::channel();
    session.load(Oid(1), move |answer| {
        drop(client);
        tell.send(answer.is_err()).unwrap();
    });
    assert!(told.recv().unwrap());
    let (tell, told) = mpsc::channel();
    session.load(Oid(1), Box::new(move |answer| tell.send(answer).unwrap()));
    assert!(matches!(told.recv().unwrap(), Err(CallError::Disconnected { .. })));
}

#[test]
fn callers_are_told_when_the_server_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let server = server(1);
    let client = client(&server.local_addr().to_string(), home.path());
    let mut told = client.invalidations();
    let transaction = client.begin(TxnMeta::default()).unwrap();
    drop(server);
    assert_eq!(told.next(), None);
    let stored = transaction.store(Oid(1), Tid::ZERO, Vec::new());
    assert!(matches!(stored, Err(CallError::Disconnected { .. })), "{stored:?}");
}
