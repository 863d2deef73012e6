//! A handler for tests of buffers and transports. No semver promise.

use blobferry_protocol::{PeerError, RequestError, Time, TransferId};
use bytes::Bytes;

use crate::io::{ConnectionHandler, FileSlice};

/// A [`ConnectionHandler`] that sends nothing, and notes what it receives.
#[derive(Debug, Default)]
pub struct NullHandler {
    /// Bytes of payload that are due; what is received is subtracted.
    pub due: u64,
    /// Bytes that were received.
    pub received: usize,
    /// What has happened, in order: `N bytes`, or `timeout`.
    pub happened: Vec<String>,
    /// Why file slices could not be sent.
    pub failed: Vec<RequestError>,
}

impl ConnectionHandler for NullHandler {
    fn transmit(&mut self, _: Time, _: &mut Vec<u8>, _: usize, _: bool) -> Option<FileSlice> {
        None
    }
    fn body_failed(&mut self, _: TransferId, reason: RequestError) {
        self.failed.push(reason);
    }
    fn receive(&mut self, _: Time, bytes: Bytes) -> Result<(), PeerError> {
        self.due = self.due.saturating_sub(bytes.len() as u64);
        self.received += bytes.len();
        self.happened.push(format!("{} bytes", bytes.len()));
        Ok(())
    }
    fn wants_input(&self) -> bool {
        true
    }
    fn payload_due(&self) -> u64 {
        self.due
    }
    fn poll_timeout(&self) -> Option<Time> {
        None
    }
    fn handle_timeout(&mut self, _: Time) -> Result<(), PeerError> {
        self.happened.push("timeout".into());
        Ok(())
    }
    fn catch_up(&mut self) {}
    fn error(&self) -> Option<PeerError> {
        None
    }
    fn is_finished(&self) -> bool {
        false
    }
}
