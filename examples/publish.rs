//! Publishes two files at one moment, and reads them back through this machine's cache.
//!
//! The server is in the same process here. Usually it is another one, on another machine: `blobferry serve`.

use std::sync::Arc;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Tid, TxnMeta};
use blobferry_store::{SqliteStore, StoreConfig};
use blobferry_transport_tokio::{BlobSource, Client, ClientConfig, Server, ServerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = tempfile::tempdir()?;
    let store = SqliteStore::open(home.path().join("server"), StoreConfig::default())?;
    let server = Server::bind("127.0.0.1:0", Arc::new(store), ServerConfig::default()).await?;

    // Any number of processes may share the directory of a cache.
    let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
    let client = Client::connect(server.local_addr(), cache, ClientConfig::default()).await?;

    // Both files appear at one moment, or neither does.
    let transaction = client.begin(TxnMeta::default())?;
    let oids = client.new_oids(2).await?;
    let large = BlobSource::streamed(std::env::current_exe()?);
    let small = BlobSource::bytes("a few bytes");
    tokio::try_join!(
        transaction.store_blob(oids[0], Tid::ZERO, b"large".to_vec(), large),
        transaction.store_blob(oids[1], Tid::ZERO, b"small".to_vec(), small),
    )?;
    let tid = transaction.commit().await?;

    // The first load on this machine downloads a blob. All later ones get the same file.
    for oid in oids {
        let cached = client.load_blob(BlobId { oid, tid }).await?;
        println!("{} bytes in {}", cached.size(), cached.path().display());
    }

    client.close().await;
    server.stop().await;
    Ok(())
}

#[test]
fn two_files_are_published_and_read_back() {
    main().unwrap();
}
