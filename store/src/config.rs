//! Settings of a store.

use std::time::Duration;

/// Settings of a store. The defaults suit a server that clients reach over a network.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The largest blob, in bytes, that is kept inside the database.
    ///
    /// Creating and syncing a file costs more than all else that a commit does. 0 gives every
    /// non-empty blob a file of its own, as clients that share the directory need. Larger values
    /// than [`StoreConfig::INLINE_LIMIT`] count as that. Default: 64 KiB.
    pub inline_max: u64,
    /// The bytes of an arriving blob from one early sync to the next, which shorten the sync at its
    /// end. 0: a blob is synced only at its end. Default: 8 MiB.
    pub sync_ahead: u64,
    /// How long a transaction may hold its locks between vote and finish. Then the store aborts it.
    /// Default: 30 seconds.
    pub vote_timeout: Duration,
    /// How long a vote may wait for its locks. Then it fails with
    /// [`Deadline::Locks`](blobferry_protocol::Deadline::Locks), and the store aborts its
    /// transaction. Default: 30 seconds.
    pub lock_timeout: Duration,
    /// The most objects in one transaction. Each takes about 100 bytes of memory until the commit.
    /// Default: 1,000,000.
    pub max_objects: u64,
    /// The most bytes of user and description together in one transaction. Default: 64 KiB.
    pub max_meta: u64,
    /// The most bytes of records and blobs that all open transactions together may have staged.
    /// Default: unlimited.
    pub max_staged: u64,
    /// The most transactions that are open at once. Default: 10,000.
    pub max_transactions: u64,
}

impl StoreConfig {
    /// The largest blob, in bytes, that can be kept inside the database: 1 MiB. Such blobs are held
    /// in memory.
    pub const INLINE_LIMIT: u64 = 1 << 20;
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig {
            inline_max: 64 << 10,
            sync_ahead: 8 << 20,
            vote_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(30),
            max_objects: 1_000_000,
            max_meta: 64 << 10,
            max_staged: u64::MAX,
            max_transactions: 10_000,
        }
    }
}
