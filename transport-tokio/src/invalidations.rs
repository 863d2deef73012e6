//! Commits as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use blobferry_cache::client::Invalidation;
use futures_core::Stream;
use tokio::sync::mpsc;

/// The transactions that are committed, in order, this client's own among them; from
/// [`Client::invalidations`](crate::Client::invalidations). Ends when the connection does.
#[derive(Debug)]
pub struct Invalidations(pub(crate) mpsc::UnboundedReceiver<Invalidation>);

impl Invalidations {
    /// The next one; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Invalidation> {
        self.0.recv().await
    }
}

impl Stream for Invalidations {
    type Item = Invalidation;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Invalidation>> {
        self.0.poll_recv(context)
    }
}
