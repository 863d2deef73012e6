//! Messages between a benchmark and its clients, which are child processes: a request and its
//! answer, each one line of JSON.

use std::path::PathBuf;
use std::time::Duration;

use blobferry_protocol::{BlobId, Oid, Tid};
use serde::{Deserialize, Serialize};

/// A request to a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Store a file as `count` blobs, each in its own transaction. Answered with [`CallTimes`].
    StoreFile { path: PathBuf, count: usize },
    /// Store `count` objects with blobs of `blob` bytes (or none) in one transaction. Answered with
    /// [`Stored`].
    Fill { count: usize, blob: Option<usize> },
    /// Publish `count` files of `blob` bytes, all in one new directory. Answered with [`Stored`].
    Publish { directory: String, count: usize, blob: usize },
    /// Let `callers` callers make calls until all calls are made or the time is over. Answered with
    /// [`CallTimes`].
    Call { what: Calls, callers: usize, time: Duration },
    /// Load a blob, and meanwhile a small object repeatedly, on the same connection or on another.
    /// Answered with the [`CallTimes`] of the small requests.
    Ping { oid: Oid, during: BlobId, on_another: bool },
    /// Return the server's counters. Answered with a map.
    Status,
}

/// The calls of callers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Calls {
    /// Commit blobs of `size` bytes, one in each transaction.
    CommitBlobs { size: usize },
    /// Commit objects, one in each transaction.
    CommitObjects,
    /// Load blobs into files of the cache.
    LoadBlobs { blobs: Vec<BlobId> },
    /// Load blobs into memory.
    LoadBytes { blobs: Vec<BlobId> },
    /// Load objects.
    LoadObjects { oids: Vec<Oid> },
}

/// The times of calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CallTimes {
    /// The number of calls.
    pub(super) done: u64,
    /// The total time in seconds.
    pub(super) seconds: f64,
    /// The median and the 99th percentile of a call's time, in seconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// The committed objects, each with its transaction.
    pub(super) committed: Vec<(Oid, Tid)>,
}

impl CallTimes {
    /// Returns the number of calls per second.
    pub(super) fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }
}

/// The objects of one transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) oids: Vec<Oid>,
    pub(super) tid: Tid,
}

impl Stored {
    /// Returns the blobs of the objects.
    pub(super) fn blobs(&self) -> Vec<BlobId> {
        self.oids.iter().map(|oid| BlobId { oid: *oid, tid: self.tid }).collect()
    }
}
