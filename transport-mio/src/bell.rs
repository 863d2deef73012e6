//! How other threads reach a loop: they ring for a connection, bring a new one, or tell it to finish.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use mio::{Token, Waker};

use crate::connection::Connection;

/// A loop, as other threads see it. Clones are the same.
pub(crate) struct Remote<E>(Arc<Shared<E>>);

struct Shared<E> {
    waker: Waker,
    queue: Mutex<Queue<E>>,
    /// The token of the next connection. None is used twice, so a bell that rings late rings for nobody.
    next: AtomicUsize,
    /// Connections that the loop has or will have.
    load: AtomicUsize,
}

/// What other threads have left for a loop since it looked last.
pub(crate) struct Queue<E> {
    /// For whom it rang.
    pub(crate) rung: Vec<Arc<Bell<E>>>,
    /// New connections.
    pub(crate) joining: Vec<(Token, Box<Connection<E>>)>,
    /// No connections will come after these.
    pub(crate) finish: Option<Finish>,
    /// The loop was woken, and has not looked yet.
    woken: bool,
}

/// When a loop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// When all of its connections have ended.
    Last,
    /// Then too, but at this moment at the latest.
    By(Instant),
}

impl<E> Clone for Remote<E> {
    fn clone(&self) -> Remote<E> {
        Remote(self.0.clone())
    }
}

impl<E> std::fmt::Debug for Remote<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({} connections)", self.load())
    }
}

impl<E> Remote<E> {
    /// Connections have tokens from `first` on.
    pub(crate) fn new(waker: Waker, first: Token) -> Remote<E> {
        let queue = Queue { rung: Vec::new(), joining: Vec::new(), finish: None, woken: false };
        let (next, load) = (AtomicUsize::new(first.0), AtomicUsize::new(0));
        Remote(Arc::new(Shared { waker, queue: Mutex::new(queue), next, load }))
    }

    /// A bell for a connection that will join.
    pub(crate) fn bell(&self) -> Arc<Bell<E>> {
        let token = Token(self.0.next.fetch_add(1, Ordering::Relaxed));
        Arc::new(Bell { token, rung: AtomicBool::new(false), remote: Arc::downgrade(&self.0) })
    }

    /// Brings the connection that a bell is for. Where the loop is finishing it is closed.
    pub(crate) fn join(&self, bell: &Bell<E>, connection: Connection<E>) {
        let mut queue = self.0.lock();
        if queue.finish.is_none() {
            self.0.load.fetch_add(1, Ordering::Relaxed);
            queue.joining.push((bell.token, Box::new(connection)));
            self.0.wake(queue);
        }
    }

    /// The loop gets no more connections, and ends.
    pub(crate) fn finish(&self, finish: Finish) {
        let mut queue = self.0.lock();
        queue.finish = Some(finish);
        self.0.wake(queue);
    }

    /// Connections that the loop has or will have.
    pub(crate) fn load(&self) -> usize {
        self.0.load.load(Ordering::Relaxed)
    }

    /// A connection has ended.
    pub(crate) fn left(&self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }

    /// All that waits. What comes from here on wakes the loop again.
    pub(crate) fn take(&self) -> Queue<E> {
        let mut queue = self.0.lock();
        let finish = queue.finish;
        let empty = Queue { rung: Vec::new(), joining: Vec::new(), finish, woken: false };
        std::mem::replace(&mut *queue, empty)
    }
}

impl<E> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, Queue<E>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unlocks, and wakes the loop unless it was woken before: one system call for all that waits.
    fn wake(&self, mut queue: MutexGuard<'_, Queue<E>>) {
        let woken = std::mem::replace(&mut queue.woken, true);
        drop(queue);
        if !woken && let Err(error) = self.waker.wake() {
            tracing::error!(%error, "an event loop can not be woken");
        }
    }
}

/// Rings for one connection, from any thread, even when that is gone, or its loop.
pub(crate) struct Bell<E> {
    token: Token,
    /// It rang, and the loop has not come yet. However often it rings, the loop comes once.
    rung: AtomicBool,
    remote: Weak<Shared<E>>,
}

impl<E> std::fmt::Debug for Bell<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bell({})", self.token.0)
    }
}

impl<E> Bell<E> {
    /// Has the loop give the connection a turn.
    pub(crate) fn ring(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel)
            && let Some(remote) = self.remote.upgrade()
        {
            let mut queue = remote.lock();
            queue.rung.push(self.clone());
            remote.wake(queue);
        }
    }

    /// The loop comes: what rings from here on rings again.
    pub(crate) fn answer(&self) -> Token {
        self.rung.store(false, Ordering::Release);
        self.token
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;

    #[test]
    fn however_many_ring_however_often_the_loop_is_woken_once() {
        let mut poll = Poll::new().unwrap();
        let remote: Remote<()> = Remote::new(Waker::new(poll.registry(), Token(0)).unwrap(), Token(2));
        let bells: Vec<_> = (0..3).map(|_| remote.bell()).collect();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| (0..1000).for_each(|_| bells.iter().for_each(|bell| bell.ring())));
            }
        });
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, None).unwrap();
        assert_eq!(events.iter().count(), 1);
        let mut rung: Vec<Token> = remote.take().rung.iter().map(|bell| bell.answer()).collect();
        rung.sort();
        assert_eq!(rung, [Token(2), Token(3), Token(4)]);
        assert!(remote.take().rung.is_empty());
        // Nothing is left over, and the next one is heard again.
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
        bells[1].ring();
        poll.poll(&mut events, None).unwrap();
        assert_eq!(remote.take().rung.len(), 1);
    }
}
