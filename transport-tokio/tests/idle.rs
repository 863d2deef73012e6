//! Counts the bytes that an idle connection holds on a server's heap.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use blobferry_protocol::{Config, Time, buffered, client};
use blobferry_store::{MemoryStore, StoreConfig};
use blobferry_transport_tokio::{Server, ServerConfig};
use tokio::runtime::Builder;

/// Connections that are counted together.
const CONNECTIONS: usize = 500;
/// Bytes that each of them may hold at most.
const MAX_BYTES: i64 = 2560;

/// Returns an idle connection whose hello is answered.
fn idle(address: SocketAddr) -> TcpStream {
    let mut machine = client::Connection::new(Time::ZERO, Config::default(), b"");
    let mut hello = Vec::new();
    buffered::transmit(&mut machine, Time::ZERO, &mut hello, usize::MAX, |_, _| Ok(()));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&hello).unwrap();
    assert!(stream.read(&mut [0; 256]).unwrap() > 0, "the server has closed the connection");
    stream
}

#[test]
fn an_idle_connection_holds_at_most_2560_bytes() {
    // The server runs on this thread alone, whose allocations are counted.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let store = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
    let server = runtime.block_on(Server::bind("127.0.0.1:0", store, ServerConfig::default())).unwrap();
    let address = server.local_addr();
    let connect = |many| {
        let connect = move || (0..many).map(|_| idle(address)).collect::<Vec<_>>();
        let connected = runtime.block_on(async { tokio::task::spawn_blocking(connect).await.unwrap() });
        // The server's tasks finish what they have begun.
        runtime.block_on(async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
        connected
    };
    let mut connections = connect(10);
    let held = allocation_counter::measure(|| connections.extend(connect(CONNECTIONS)));
    // The streams are no allocations, and another thread has allocated their list.
    let each = held.bytes_current / CONNECTIONS as i64;
    println!("an idle connection holds {each} bytes");
    assert!(each <= MAX_BYTES, "{each} bytes each");
    drop(connections);
    runtime.block_on(server.stop());
}
