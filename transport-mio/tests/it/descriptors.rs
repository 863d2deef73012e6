//! Descriptors and threads: a server survives without free descriptors, and ended servers and
//! clients release theirs.

use std::net::TcpStream;

use blobferry_protocol::{Tid, TxnMeta};
use blobferry_transport_mio::BlobSource;

use crate::support::{ServerProcess, client, descriptors, is_second_process, second_process, serve, server};

#[test]
fn a_server_survives_without_descriptors() {
    if is_second_process() {
        descriptors(Some(32));
        serve();
    }
    let test = "descriptors::a_server_survives_without_descriptors";
    let home = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(test);
    let early = client(&server.address, home.path());
    // The kernel accepts the connections, but the server has too few descriptors for all of them.
    let crowd: Vec<_> = (0..64).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    server.wait_for("could not be accepted");
    early.new_oids(1).unwrap();
    drop(crowd);
    let late = client(&server.address, home.path());
    late.new_oids(1).unwrap();
    early.new_oids(1).unwrap();
}

#[test]
fn ended_servers_and_clients_release_threads_and_files() {
    const ROUNDS: usize = 40;
    if !is_second_process() {
        let test = "descriptors::ended_servers_and_clients_release_threads_and_files";
        // In a process of its own, where no other test opens anything.
        let output = second_process(test).output().unwrap();
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
    // Some threads may be about to end, and idle workers stay alive. A leak would leave at least
    // one per round.
    let threads = std::fs::read_dir("/proc/self/task").unwrap().filter(|task| {
        let name = std::fs::read_to_string(task.as_ref().unwrap().path().join("comm")).unwrap_or_default();
        name.starts_with("blobferry-serve") || name.starts_with("blobferry-clien")
    });
    let threads = threads.count();
    assert!(threads < ROUNDS / 4, "{threads} threads");
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < ROUNDS / 2, "{open} descriptors");
}
