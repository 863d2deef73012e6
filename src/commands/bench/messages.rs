//! What is said between a benchmark and its clients, which are processes of their own: a message and its answer, each a
//! line of JSON.

use std::path::PathBuf;
use std::time::Duration;

use blobferry_protocol::{BlobId, Oid, Tid};
use serde::{Deserialize, Serialize};

/// What a client is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Store a file as so many blobs, each in a transaction of its own. Answered with [`CallTimes`].
    StoreFile { path: PathBuf, count: usize },
    /// Store so many objects with blobs of so many bytes (or none) in one transaction. Answered with [`Stored`].
    Fill { count: usize, blob: Option<usize> },
    /// Publish so many files of so many bytes, all in one new directory. Answered with [`Stored`].
    Publish { directory: String, count: usize, blob: usize },
    /// Let so many callers do something, until all of it is done or the time is over. Answered with [`CallTimes`].
    Call { what: Calls, callers: usize, time: Duration },
    /// Load a blob, and a small object again and again meanwhile, on the same connection or on another. Answered with
    /// [`CallTimes`], of the small requests.
    Ping { oid: Oid, during: BlobId, on_another: bool },
    /// Tell the server's counters. Answered with a map.
    Status,
}

/// What callers do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Calls {
    /// Commit blobs of so many bytes, one in each transaction.
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

/// What callers have done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CallTimes {
    /// How often.
    pub(super) done: u64,
    /// How long all of it took.
    pub(super) seconds: f64,
    /// How long one took, in seconds: the median, and what one in a hundred passes.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// What was committed: each with its transaction.
    pub(super) committed: Vec<(Oid, Tid)>,
}

impl CallTimes {
    /// How many a second.
    pub(super) fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }
}

/// What was stored at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) oids: Vec<Oid>,
    pub(super) tid: Tid,
}

impl Stored {
    /// The blobs.
    pub(super) fn blobs(&self) -> Vec<BlobId> {
        self.oids.iter().map(|oid| BlobId { oid: *oid, tid: self.tid }).collect()
    }
}
