//! Notifications of a client, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use blobferry_session::client::{
    Coalesce, ConnectionEvent, Ended, Invalidation, NotificationQueue, NotificationSender,
};
use futures_core::Stream;

/// Notifications of a client, in order. The stream ends after the client has ended.
///
/// A slow receiver costs bounded memory: if it falls too far behind, queued notifications are merged or dropped.
#[derive(Debug)]
pub struct Notifications<T: Coalesce>(NotificationQueue<T>);

/// The commits of all clients, in order; from [`Client::invalidations`](crate::Client::invalidations).
pub type Invalidations = Notifications<Invalidation>;

/// The changes of a client's connection; from [`Client::connection_events`](crate::Client::connection_events).
pub type ConnectionEvents = Notifications<ConnectionEvent>;

impl<T: Coalesce> Notifications<T> {
    pub(crate) fn new() -> (NotificationSender<T>, Notifications<T>) {
        let (sender, queue) = NotificationQueue::new();
        (sender, Notifications(queue))
    }

    /// Waits for the next notification. Returns `None` after the client has ended.
    ///
    /// # Cancel safety
    /// A dropped future loses no notification.
    pub async fn next(&mut self) -> Option<T> {
        std::future::poll_fn(|context| self.0.poll_pop(context)).await.ok()
    }

    /// Returns the next notification without waiting, or `None` if there is none yet.
    ///
    /// # Errors
    /// [`Ended`] after the client has ended.
    pub fn try_next(&mut self) -> Result<Option<T>, Ended> {
        self.0.try_pop()
    }
}

impl<T: Coalesce> Stream for Notifications<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_pop(context).map(Result::ok)
    }
}
