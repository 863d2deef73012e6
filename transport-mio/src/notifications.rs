//! What happens, one after the other.

use std::sync::mpsc::{self, Receiver, TrySendError};

use blobferry_session::client::{Coalesce, ConnectionEvent, Invalidation, NotificationQueue};

/// What happens, in order. [`next`](Iterator::next) blocks until something does; it ends when the client does.
#[derive(Debug)]
pub struct Notifications<T> {
    unheard: NotificationQueue<T>,
    /// Rings when something was told.
    rung: Receiver<()>,
}

/// The transactions that are committed, in order, this client's own among them; from
/// [`Client::invalidations`](crate::Client::invalidations).
pub type Invalidations = Notifications<Invalidation>;

/// What happens to a client's connection; from [`Client::connection_events`](crate::Client::connection_events).
pub type ConnectionEvents = Notifications<ConnectionEvent>;

impl<T: Coalesce + Send + 'static> Notifications<T> {
    /// News, and who tells them: `false` when nobody listens any more.
    pub(crate) fn new() -> (impl FnMut(&T) -> bool + Send + use<T>, Notifications<T>) {
        let (ring, rung) = mpsc::sync_channel(1);
        let news = Notifications { unheard: NotificationQueue::default(), rung };
        let unheard = news.unheard.clone();
        let tell = move |what: &T| {
            unheard.tell(what);
            !matches!(ring.try_send(()), Err(TrySendError::Disconnected(())))
        };
        (tell, news)
    }
}

impl<T: Coalesce> Notifications<T> {
    /// The next one if it is there already: for who looks between other work.
    pub fn try_next(&mut self) -> Option<T> {
        self.unheard.hear()
    }
}

impl<T: Coalesce> Iterator for Notifications<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            let next = self.unheard.hear();
            if next.is_some() || self.rung.recv().is_err() {
                return next.or_else(|| self.unheard.hear());
            }
        }
    }
}
