//! How connections end: servers that stop, with and without something under way.

use std::time::Duration;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_store::StoreConfig;
use blobferry_transport_tokio::{BlobSource, CallError, Client, ClientConfig, ConnectError, ServerConfig};
use tokio::io::AsyncReadExt;

use super::{World, store};
use crate::road::{DOWN, Road};
use crate::support::bytes;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_completes_what_is_under_way_and_begins_nothing_new() {
    let patient = ServerConfig { grace: Duration::from_secs(600), ..ServerConfig::default() };
    let world = World::with(StoreConfig::default(), patient).await;
    let address = world.server.local_addr();
    let road = Road::to(&address.to_string());
    let (idle, loader) = (world.client("idle").await, world.client_at(&road.address, "loader").await);
    let blob = store(&idle, BlobSource::bytes(bytes("blob", 8_000_000))).await;
    road.limit(DOWN, 1_000_000);
    let loading = tokio::spawn({
        let loader = loader.clone();
        async move { loader.load_blob(blob).await }
    });
    tokio::task::block_in_place(|| road.wait_until_held());
    let mut told = idle.invalidations();
    let World { server, dir } = world;
    let stopping = tokio::spawn(server.stop());
    // The one with nothing under way is let go, and then nobody is let in.
    while told.next().await.is_some() {}
    assert!(idle.load(blob.oid).await.is_err());
    let cache = Cache::open(dir.path().join("late"), CacheConfig::default()).unwrap();
    let late = Client::connect(address, cache, ClientConfig::default()).await;
    assert!(matches!(late, Err(ConnectError::Connect(_))), "{late:?}");
    assert!(!stopping.is_finished());
    road.open();
    let cached = loading.await.unwrap().unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", 8_000_000));
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_fails_what_waits_for_it_and_leaves_nothing_half() {
    let world = World::new().await;
    let road = Road::to(&world.server.local_addr().to_string());
    let client = world.client_at(&road.address, "cache").await;
    let blob = store(&client, BlobSource::bytes(bytes("blob", 3_000_000))).await;
    road.limit(DOWN, 1_000_000);
    let loading = tokio::spawn({
        let client = client.clone();
        async move { client.load_blob(blob).await }
    });
    tokio::task::block_in_place(|| road.wait_until_held());
    road.cut();
    let lost = loading.await.unwrap();
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    assert!(matches!(client.status().await, Err(CallError::Disconnected { .. })));
    // Another connection finds a clean cache, and loads it.
    let again = world.client("cache").await;
    let cached = again.load_blob(blob).await.unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", 3_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_closed_finishes_what_it_began_and_begins_nothing_new() {
    let world = World::new().await;
    let road = Road::to(&world.server.local_addr().to_string());
    let client = world.client_at(&road.address, "cache").await;
    let blob = store(&client, BlobSource::bytes(bytes("blob", 8_000_000))).await;
    road.limit(DOWN, 1_000_000);
    let loading = tokio::spawn({
        let client = client.clone();
        async move { client.load_blob(blob).await }
    });
    tokio::task::block_in_place(|| road.wait_until_held());
    let closing = tokio::spawn(client.clone().close());
    road.open();
    let cached = loading.await.unwrap().unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", 8_000_000));
    closing.await.unwrap();
    assert!(client.status().await.is_err());
}

#[tokio::test]
async fn who_says_nothing_is_sent_away() {
    let mut hurried = ServerConfig::default();
    hurried.connection.handshake_timeout = Duration::from_millis(10);
    let world = World::with(StoreConfig::default(), hurried).await;
    let mut silent = tokio::net::TcpStream::connect(world.server.local_addr()).await.unwrap();
    assert_eq!(silent.read_to_end(&mut Vec::new()).await.unwrap(), 0);
}
