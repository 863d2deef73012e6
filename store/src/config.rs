//! Settings of a store.

use std::time::Duration;

/// Settings of a store. The defaults suit a server that clients reach by network.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Blobs of at most so many bytes are kept inside the database: creating and syncing a file costs more than
    /// everything else together. 0 gives every blob that has bytes a file of its own, as clients need who share
    /// the directory. At most [`StoreConfig::INLINE_LIMIT`] counts. Default: 64 KiB.
    pub inline_max: u64,
    /// While a blob of more than so many bytes arrives, what is there is brought to the disk, each time that so many have
    /// come, so that little is left to wait for at its end. 0: only at its end. Default: 8 MiB.
    pub sync_ahead: u64,
    /// How long a transaction may hold its locks between vote and finish; then the store gives it up.
    /// Default: 30 seconds.
    pub vote_timeout: Duration,
    /// How long a vote may wait for its locks; then it fails with
    /// [`Deadline::Locks`](blobferry_protocol::Deadline::Locks), and the store gives its transaction up.
    /// Default: 30 seconds.
    pub lock_timeout: Duration,
    /// Objects in one transaction. Each takes some 100 bytes of memory until the commit. Default: 1,000,000.
    pub max_objects: u64,
    /// Bytes of user and description of one transaction. Default: 64 KiB.
    pub max_meta: u64,
    /// Bytes of records and blobs that all open transactions may have staged at once. Default: as much as the
    /// disk takes.
    pub max_staged: u64,
    /// Transactions open at once. Default: 10,000.
    pub max_transactions: u64,
}

impl StoreConfig {
    /// The largest blob that can be kept inside the database: 1 MiB, since such blobs are held in memory.
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
