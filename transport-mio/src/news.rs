//! What happens, one after the other.

use std::sync::mpsc::Receiver;

use blobferry_cache::client::{ConnectionEvent, Invalidation};

/// What happens, in order. [`next`](Iterator::next) blocks until something does; it ends when the client does.
#[derive(Debug)]
pub struct News<T>(pub(crate) Receiver<T>);

/// The transactions that are committed, in order, this client's own among them; from
/// [`Client::invalidations`](crate::Client::invalidations).
pub type Invalidations = News<Invalidation>;

/// What happens to a client's connection; from [`Client::connection_events`](crate::Client::connection_events).
pub type ConnectionEvents = News<ConnectionEvent>;

impl<T> News<T> {
    /// The next one if it is there already: for who looks between other work.
    pub fn try_next(&mut self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

impl<T> Iterator for News<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}
