//! Descriptors and threads: the server goes on without any left, and nobody keeps what is not needed any more.

use std::net::TcpStream;

use blobferry_protocol::{Tid, TxnMeta};
use blobferry_transport_mio::BlobSource;

use crate::support::{ServerProcess, client, descriptors, is_other_part, other_part, serve, server};

#[test]
fn a_server_without_descriptors_serves_whom_it_has_and_lets_others_in_when_it_has_some_again() {
    if is_other_part() {
        descriptors(Some(32));
        serve();
    }
    let test = "descriptors::a_server_without_descriptors_serves_whom_it_has_and_lets_others_in_when_it_has_some_again";
    let home = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(test);
    let early = client(&server.address, home.path());
    // The kernel takes them, and the server can not have them all.
    let crowd: Vec<_> = (0..64).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    server.says("could not be accepted");
    early.new_oids(1).unwrap();
    drop(crowd);
    let late = client(&server.address, home.path());
    late.new_oids(1).unwrap();
    early.new_oids(1).unwrap();
}

#[test]
fn servers_and_clients_that_are_gone_have_no_threads_and_no_descriptors() {
    const ROUNDS: usize = 40;
    if !is_other_part() {
        let test = "descriptors::servers_and_clients_that_are_gone_have_no_threads_and_no_descriptors";
        // In a process of its own, where nobody else opens anything.
        let output = other_part(test).output().unwrap();
        return assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let home = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let server = server(2);
        let client = client(&server.local_addr().to_string(), home.path());
        let transaction = client.begin(TxnMeta::default()).unwrap();
        let oid = client.new_oids(1).unwrap()[0];
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::bytes("a blob")).unwrap();
        match round % 4 {
            0 => {
                drop(transaction);
                client.close();
                server.stop();
            }
            1 => drop((client, transaction, server)),
            2 => drop((server, client, transaction)),
            _ => {
                drop(transaction);
                server.stop();
                client.close();
            }
        }
    }
    // Some may be on their way out, and the workers stay for a while: what was left behind would be as many as the
    // rounds at least.
    let threads = std::fs::read_dir("/proc/self/task").unwrap().filter(|task| {
        let name = std::fs::read_to_string(task.as_ref().unwrap().path().join("comm")).unwrap_or_default();
        name.starts_with("blobferry-serve") || name.starts_with("blobferry-clien")
    });
    let threads = threads.count();
    assert!(threads < ROUNDS / 4, "{threads} threads");
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < ROUNDS / 2, "{open} descriptors");
}
