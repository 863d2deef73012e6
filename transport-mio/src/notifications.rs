//! Notifications of a client, as a blocking iterator.

use std::time::Duration;

use blobferry_session::client::{
    Coalesce, ConnectionEvent, Ended, Invalidation, NotificationQueue, NotificationSender,
};

/// Notifications of a client, in order.
///
/// [`next`](Iterator::next) blocks until there is one, and returns `None` after the client has ended. A slow receiver
/// costs bounded memory: if it falls too far behind, queued notifications are merged or dropped.
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

    /// Returns the next notification without waiting, or `None` if there is none yet.
    ///
    /// # Errors
    /// [`Ended`] after the client has ended.
    pub fn try_next(&mut self) -> Result<Option<T>, Ended> {
        self.0.try_pop()
    }

    /// Waits for the next notification, for at most `timeout`. Returns `None` if the time ran out.
    ///
    /// # Errors
    /// [`Ended`] after the client has ended.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<T>, Ended> {
        self.0.pop_timeout(timeout)
    }
}

impl<T: Coalesce> Iterator for Notifications<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.pop().ok()
    }
}
