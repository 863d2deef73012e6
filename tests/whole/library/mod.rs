//! The client library against a server on the embedded store, over real sockets.

mod blobs;
mod endings;
mod transactions;

use std::path::PathBuf;
use std::sync::Arc;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_store::{EmbeddedStore, StoreConfig};
use blobferry_transport_tokio::{BlobSource, Client, ClientConfig, Server, ServerConfig};
use tempfile::TempDir;

/// A server in this process, and room for caches and files.
struct World {
    server: Server,
    dir: TempDir,
}

impl World {
    async fn new() -> World {
        World::with(StoreConfig::default(), ServerConfig::default()).await
    }

    async fn with(store: StoreConfig, server: ServerConfig) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path().join("server"), store).unwrap();
        let server = Server::bind("127.0.0.1:0", Arc::new(store), server).await.unwrap();
        World { server, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A client with a cache of this name.
    async fn client(&self, cache: &str) -> Client {
        self.client_at(&self.server.local_addr().to_string(), cache).await
    }

    /// The same, with another way to the server.
    async fn client_at(&self, address: &str, cache: &str) -> Client {
        let cache = Cache::open(self.path(cache), CacheConfig::default()).unwrap();
        Client::connect(address, cache, ClientConfig::default()).await.unwrap()
    }
}

async fn new_oid(client: &Client) -> Oid {
    client.new_oids(1).await.unwrap()[0]
}

/// Commits one new blob.
async fn store(client: &Client, source: BlobSource) -> BlobId {
    let oid = new_oid(client).await;
    let mut transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store_blob(oid, Tid::ZERO, b"record".to_vec(), source).await.unwrap();
    BlobId { oid, tid: transaction.commit().await.unwrap() }
}

/// One of the server's counters.
async fn counter(client: &Client, name: &str) -> u64 {
    client.status().await.unwrap().into_iter().find(|(counter, _)| counter == name).unwrap().1
}
