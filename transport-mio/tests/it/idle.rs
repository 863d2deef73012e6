//! The memory that idle connections cost a server.

use crate::support::{ServerProcess, client, descriptors, idle, is_second_process, serve};

/// A client among them is still answered.
#[test]
fn two_thousand_idle_connections_cost_at_most_8_kib_each() {
    const IDLE: u64 = 2000;
    descriptors(None);
    if is_second_process() {
        serve();
    }
    let test = "idle::two_thousand_idle_connections_cost_at_most_8_kib_each";
    let home = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(test);
    let client = client(&server.address, home.path());
    client.new_oids(1).unwrap();
    let before = server.resident();
    let connections: Vec<_> = (0..IDLE).map(|_| idle(&server.address)).collect();
    let each = server.resident().saturating_sub(before) / IDLE;
    println!("{each} bytes of resident memory for each idle connection");
    assert!(each <= 8 << 10, "{each} bytes");
    let status = client.status().unwrap();
    assert!(status.contains(&("connections".to_owned(), IDLE + 1)), "{status:?}");
    drop(connections);
    client.new_oids(1).unwrap();
    client.close();
}
