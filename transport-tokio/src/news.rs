//! What happens, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use blobferry_cache::client::{ConnectionEvent, Invalidation};
use futures_core::Stream;
use tokio::sync::mpsc;

/// What happens, in order. Ends when the client does.
#[derive(Debug)]
pub struct News<T>(pub(crate) mpsc::UnboundedReceiver<T>);

/// The transactions that are committed, in order, this client's own among them; from
/// [`Client::invalidations`](crate::Client::invalidations).
pub type Invalidations = News<Invalidation>;

/// What happens to a client's connection; from [`Client::connection_events`](crate::Client::connection_events).
pub type ConnectionEvents = News<ConnectionEvent>;

impl<T> News<T> {
    /// The next; `None` when the client has ended.
    pub async fn next(&mut self) -> Option<T> {
        self.0.recv().await
    }
}

impl<T> Stream for News<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}
