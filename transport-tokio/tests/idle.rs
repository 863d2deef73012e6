//! What an idle connection holds on a server's heap: counted, exactly.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use blobferry_protocol::{Config, Time, buffered, client};
use blobferry_store::{MemoryStore, StoreConfig};
use blobferry_transport_tokio::{Server, ServerConfig};
use tokio::runtime::Builder;

/// Connections that are counted together.
const MANY: usize = 500;
/// Bytes that each of them may hold.
const EACH: i64 = 2560;

/// Connects, and shakes hands.
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
fn an_idle_connection_holds_little() {
    // All that the server does, it does on this thread, which is the one whose memory is counted.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let store = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
    let server = runtime.block_on(Server::bind("127.0.0.1:0", store, ServerConfig::default())).unwrap();
    let address = server.local_addr();
    let connect = |many| {
        let connect = move || (0..many).map(|_| idle(address)).collect::<Vec<_>>();
        let connected = runtime.block_on(async { tokio::task::spawn_blocking(connect).await.unwrap() });
        // What is on its way to be done is done.
        runtime.block_on(async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
        connected
    };
    let mut connections = connect(10);
    let held = allocation_counter::measure(|| connections.extend(connect(MANY)));
    // The streams are the test's own, and their list came from another thread.
    let each = held.bytes_current / MANY as i64;
    println!("an idle connection holds {each} bytes");
    assert!(each <= EACH, "{each} bytes each");
    drop(connections);
    runtime.block_on(server.stop());
}
