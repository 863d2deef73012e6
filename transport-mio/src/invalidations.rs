//! Commits, one after the other.

use std::sync::mpsc::Receiver;

use blobferry_cache::client::Invalidation;

/// The transactions that are committed, in order, this client's own among them; from
/// [`Client::invalidations`](crate::Client::invalidations). [`next`](Iterator::next) blocks until there is one; it
/// ends when the connection does.
#[derive(Debug)]
pub struct Invalidations(pub(crate) Receiver<Invalidation>);

impl Invalidations {
    /// The next one if it is there already: for who looks between other work.
    pub fn try_next(&mut self) -> Option<Invalidation> {
        self.0.try_recv().ok()
    }
}

impl Iterator for Invalidations {
    type Item = Invalidation;

    fn next(&mut self) -> Option<Invalidation> {
        self.0.recv().ok()
    }
}
