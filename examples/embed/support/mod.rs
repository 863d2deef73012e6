//! The server that the examples connect to: a real one, in this process, with one blob.

use std::error::Error;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Digest, Tid, TxnMeta};
use blobferry_store::{SqliteStore, StoreConfig};
use blobferry_transport_tokio::{BlobSource, Client, ClientConfig, Server, ServerConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The size of the blob in bytes: several windows, so that the client must give credit.
const SIZE: u64 = 8 << 20;

/// A server on a free port. It runs in threads of its own until this value is dropped.
pub(crate) struct ExampleServer {
    /// The address that the server listens on.
    pub(crate) address: SocketAddr,
    /// The blob that the server has.
    pub(crate) blob: BlobId,
    digest: Digest,
    /// A directory for the server's files and the example's. It is removed when this value is
    /// dropped.
    pub(crate) home: TempDir,
    server: Server,
    runtime: Runtime,
}

impl ExampleServer {
    /// Starts a server, and publishes a blob on it.
    pub(crate) fn start() -> Result<ExampleServer, Box<dyn Error>> {
        let home = tempfile::tempdir()?;
        let bytes = noise();
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        let runtime = Runtime::new()?;
        let (server, blob) = runtime.block_on(async {
            let store = SqliteStore::open(home.path().join("server"), StoreConfig::default())?;
            let server = Server::bind("127.0.0.1:0", Arc::new(store), ServerConfig::default()).await?;
            let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
            let client = Client::connect(server.local_addr(), cache, ClientConfig::default()).await?;
            let transaction = client.begin(TxnMeta::default())?;
            let oid = client.new_oids(1).await?.into_iter().next().ok_or("the server gave no oid")?;
            transaction.store_blob(oid, Tid::ZERO, b"its record".to_vec(), BlobSource::bytes(bytes)).await?;
            let tid = transaction.commit().await?;
            client.close().await;
            Ok::<_, Box<dyn Error>>((server, BlobId { oid, tid }))
        })?;
        Ok(ExampleServer { address: server.local_addr(), blob, digest, home, server, runtime })
    }

    /// Asserts that this file has the blob's bytes, and that `digest`, as the client received it,
    /// is the blob's.
    pub(crate) fn check(&self, path: &Path, digest: Digest) -> io::Result<()> {
        assert_eq!(path.metadata()?.len(), SIZE);
        assert_eq!(digest_of(path)?, self.digest);
        assert_eq!(digest, self.digest);
        println!("all {SIZE} bytes of blob {} have arrived; the digest is right", self.blob);
        Ok(())
    }

    /// Stops the server gracefully: requests in progress are answered first.
    pub(crate) fn stop(self) {
        self.runtime.block_on(self.server.stop());
    }
}

/// Returns the digest of a file.
pub(crate) fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Returns bytes without repetition, so that a chunk in the wrong place changes the content.
fn noise() -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}
