//! What a server counts of its conversations.

use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_protocol::RequestError;

/// Counters of all sessions together, since the server began.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Sessions there are.
    pub(super) connections: Gauge,
    /// Sessions there have been.
    pub(super) accepted: Gauge,
    /// Requests that arrived.
    pub(super) requests: Gauge,
    /// Whole blobs sent, to their last byte.
    pub(super) blobs_sent: Gauge,
    /// Parts of blobs sent.
    pub(super) ranges_sent: Gauge,
    /// Bytes of blobs sent.
    pub(super) bytes_sent: Gauge,
    /// Blobs that arrived, to their last byte.
    pub(super) blobs_received: Gauge,
    /// Bytes of blobs that arrived.
    pub(super) bytes_received: Gauge,
    /// Blobs that were found damaged when they were to be sent, as often as they were.
    pub(super) damaged_found: Gauge,
}

/// A number that many threads change, and somebody looks at now and then.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    pub(super) fn add(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Ordering::Relaxed)
    }

    pub(super) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn named(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("connections", self.connections.get()),
            ("accepted", self.accepted.get()),
            ("requests", self.requests.get()),
            ("blobs_sent", self.blobs_sent.get()),
            ("ranges_sent", self.ranges_sent.get()),
            ("bytes_sent", self.bytes_sent.get()),
            ("blobs_received", self.blobs_received.get()),
            ("bytes_received", self.bytes_received.get()),
            ("damaged_found", self.damaged_found.get()),
        ]
    }

    /// Counts an error in reading a blob, and tells the operator, if it is damage.
    pub(super) fn damage(&self, error: &RequestError) {
        if let RequestError::Damaged { blob, detail } = error {
            self.damaged_found.add(1);
            tracing::error!(%blob, detail, "a blob is damaged; restore its file from a backup");
        }
    }
}

/// The memory that this process has resident, in bytes; 0 where the system does not tell.
pub(super) fn rss_bytes() -> u64 {
    let resident = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = resident.and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
