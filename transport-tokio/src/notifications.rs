//! What happens, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use blobferry_session::client::{Coalesce, ConnectionEvent, Invalidation, NotificationQueue};
use futures_core::Stream;
use tokio::sync::mpsc::{self, Receiver, error::TrySendError};

/// What happens, in order. Ends when the client does.
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
        let (ring, rung) = mpsc::channel(1);
        let news = Notifications { unheard: NotificationQueue::default(), rung };
        let unheard = news.unheard.clone();
        let tell = move |what: &T| {
            unheard.tell(what);
            !matches!(ring.try_send(()), Err(TrySendError::Closed(())))
        };
        (tell, news)
    }
}

impl<T: Coalesce> Notifications<T> {
    /// The next; `None` when the client has ended.
    pub async fn next(&mut self) -> Option<T> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        loop {
            let next = self.unheard.hear();
            if next.is_some() || ready!(self.rung.poll_recv(context)).is_none() {
                return Poll::Ready(next.or_else(|| self.unheard.hear()));
            }
        }
    }
}

impl<T: Coalesce> Stream for Notifications<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.get_mut().poll(context)
    }
}
