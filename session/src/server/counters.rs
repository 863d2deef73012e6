//! Counters of a server, over all connections.

use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_protocol::RequestError;

/// Counters of all connections together, since the server started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Connections at this moment.
    pub(super) connections: Gauge,
    /// Connections that were ever admitted.
    pub(super) accepted: Gauge,
    /// Requests that have arrived.
    pub(super) requests: Gauge,
    /// Whole blobs that were sent, to their last byte.
    pub(super) blobs_sent: Gauge,
    /// Parts of blobs that were sent.
    pub(super) ranges_sent: Gauge,
    /// Bytes of blobs that were sent.
    pub(super) bytes_sent: Gauge,
    /// Blobs that have arrived, to their last byte.
    pub(super) blobs_received: Gauge,
    /// Bytes of blobs that have arrived.
    pub(super) bytes_received: Gauge,
    /// How often a blob was found damaged when it was to be sent.
    pub(super) damaged_found: Gauge,
}

/// A number that many threads change.
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
    /// Returns all counters, by name.
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

    /// Counts and logs an error in reading a blob, if it is damage.
    pub(super) fn damage(&self, error: &RequestError) {
        if let RequestError::Damaged { blob, detail } = error {
            self.damaged_found.add(1);
            tracing::error!(target: "blobferry::server", %blob, detail, "a blob is damaged; restore its file from a backup");
        }
    }
}

/// Returns the resident memory of this process, in bytes; 0 if the system does not report it.
pub(super) fn rss_bytes() -> u64 {
    let resident = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = resident.and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
