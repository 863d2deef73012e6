//! The fixture of each test: a server on the SQLite store, clients with caches, and a directory for
//! files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_session::client::{BlobSource, ClientConfig, ConnectError, Reconnect};
use blobferry_session::server::ServerConfig;
use blobferry_store::{MemoryStore, SqliteStore, Store, StoreConfig};
use tempfile::TempDir;

use super::transport::{Client, Server, Transaction, Transport};

/// The transports of the client and of the server.
pub(crate) struct Pair {
    pub(crate) client: &'static dyn Transport,
    pub(crate) server: &'static dyn Transport,
}

pub(crate) struct World {
    client: &'static dyn Transport,
    transport: &'static dyn Transport,
    store: Arc<dyn Store>,
    config: ServerConfig,
    server: Option<Box<dyn Server>>,
    address: String,
    dir: TempDir,
}

impl World {
    pub(crate) fn new(pair: &Pair) -> World {
        World::with(pair, StoreConfig::default(), ServerConfig::default())
    }

    pub(crate) fn with(pair: &Pair, store: StoreConfig, config: ServerConfig) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), store);
        let server = pair.server.serve(store.clone(), config.clone());
        let address = server.local_addr().to_string();
        World {
            client: pair.client,
            transport: pair.server,
            store,
            config,
            server: Some(server),
            address,
            dir,
        }
    }

    /// Like [`World::new`], with a changed server configuration.
    pub(crate) fn serving(pair: &Pair, change: impl FnOnce(&mut ServerConfig)) -> World {
        let mut config = ServerConfig::default();
        change(&mut config);
        World::with(pair, StoreConfig::default(), config)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Takes the server out, for a test that stops it.
    pub(crate) fn take_server(&mut self) -> Box<dyn Server> {
        self.server.take().unwrap()
    }

    /// Starts another server on the same directory. The previous one must have stopped.
    pub(crate) fn serve_again(&mut self) {
        // Its last threads may still hold the store, which has the directory locked.
        while Arc::strong_count(&self.store) > 1 {
            std::thread::yield_now();
        }
        self.store = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
        self.store = open(self.dir.path(), StoreConfig::default());
        let server = self.transport.serve(self.store.clone(), self.config.clone());
        self.address = server.local_addr().to_string();
        self.server = Some(server);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Opens a cache. Caches with the same name share a directory, as processes do.
    pub(crate) fn cache(&self, name: &str) -> Cache {
        Cache::open(self.path(name), CacheConfig::default()).unwrap()
    }

    /// Connects a client that reconnects, to one or several addresses, for as long as a test may
    /// take.
    pub(crate) fn reconnecting_client(&self, addresses: &str, cache: &str) -> Box<dyn Client> {
        let reconnect = Reconnect { unreachable_timeout: Duration::from_secs(120), ..Reconnect::default() };
        let config = ClientConfig { reconnect: Some(reconnect), ..ClientConfig::default() };
        self.connect(addresses, self.cache(cache), config).unwrap()
    }

    /// Connects a client that ends with its first connection.
    pub(crate) fn client(&self, cache: &str) -> Box<dyn Client> {
        self.client_at(&self.address, cache)
    }

    /// Like [`World::client`], with another server address.
    pub(crate) fn client_at(&self, address: &str, cache: &str) -> Box<dyn Client> {
        let config = ClientConfig { reconnect: None, ..ClientConfig::default() };
        self.connect(address, self.cache(cache), config).unwrap()
    }

    pub(crate) fn connect(
        &self,
        address: &str,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Box<dyn Client>, ConnectError> {
        self.client.connect(address, cache, config)
    }

    /// Waits until no upload has left a file at the server. The server must have stopped, so that
    /// no more arrive.
    ///
    /// Threads of the pool may still be about to remove files.
    pub(crate) fn wait_for_no_leftovers(&self) {
        assert!(self.server.is_none());
        self.wait_until_nothing_is_staged();
    }

    /// Returns how many files of unfinished uploads the server has.
    pub(crate) fn staged_files(&self) -> usize {
        std::fs::read_dir(self.path("server/blobs/tmp")).unwrap().count()
    }

    /// Waits until the server has removed all files of unfinished uploads.
    pub(crate) fn wait_until_nothing_is_staged(&self) {
        while self.staged_files() > 0 {
            std::thread::yield_now();
        }
    }

    /// Returns the paths of a cache's blob files. Unfinished files do not count; they may vanish at
    /// any time.
    pub(crate) fn cached(&self, cache: &str) -> Vec<PathBuf> {
        let entries = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let buckets = entries(&self.path(cache)).filter(|path| path.is_dir() && !path.ends_with("tmp"));
        let blobs = buckets.flat_map(|bucket| entries(&bucket).collect::<Vec<_>>());
        blobs.filter(|path| path.extension() == Some("blob".as_ref())).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.server.take());
        // Close the store before its directory is removed.
        self.store.close();
    }
}

fn open(dir: &Path, config: StoreConfig) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(dir.join("server"), config).unwrap())
}

/// Helpers of many tests.
impl dyn Client + '_ {
    pub(crate) fn begin(&self) -> Box<dyn Transaction> {
        self.begin_with(TxnMeta::default()).unwrap()
    }

    pub(crate) fn new_oid(&self) -> Oid {
        self.new_oids(1).unwrap()[0]
    }

    /// Commits one new blob; returns its id.
    pub(crate) fn store(&self, source: BlobSource) -> BlobId {
        let oid = self.new_oid();
        let mut transaction = self.begin();
        transaction.store_blob(oid, Tid::ZERO, b"record".to_vec(), source).unwrap();
        BlobId { oid, tid: transaction.commit().unwrap() }
    }

    /// Commits a record; returns the tid.
    pub(crate) fn put(&self, oid: Oid, base: Tid, record: impl Into<Vec<u8>>) -> Tid {
        let mut transaction = self.begin();
        transaction.store(oid, base, record.into()).unwrap();
        transaction.commit().unwrap()
    }

    /// Returns one of the server's counters.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.status().unwrap().into_iter().find(|(counter, _)| counter == name).unwrap().1
    }
}
