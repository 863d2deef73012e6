//! How other threads reach a loop: they ring for a connection, bring a new one, or tell it to finish.

use blobferry_platform::sync::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use mio::{Token, Waker};

use crate::connection::Socket;

/// A loop, as other threads see it. Clones are the same.
pub(crate) struct LoopHandle<E>(Arc<Shared<E>>);

struct Shared<E> {
    waker: Waker,
    queue: Mutex<Queue<E>>,
    /// The token of the next connection. None is used twice, so a bell that rings late rings for nobody.
    next: AtomicUsize,
    /// Connections that the loop has or will have.
    load: AtomicUsize,
}

/// A connection that is to join a loop, and its bell.
type Joining<E> = (Arc<ConnectionWaker<E>>, Box<Socket<E>>);

/// What other threads have left for a loop since it looked last.
pub(crate) struct Queue<E> {
    /// For whom it rang.
    pub(crate) rung: Vec<Arc<ConnectionWaker<E>>>,
    /// New connections.
    pub(crate) joining: Vec<Joining<E>>,
    /// No connections will come after these. The loop ends with the last one, at this moment at the latest.
    pub(crate) finish: Option<Instant>,
    /// There is more than rings: a connection, or the end.
    more: bool,
    /// The loop waits for events, and was not woken. Else it looks here before it does.
    asleep: bool,
}

impl<E> Clone for LoopHandle<E> {
    fn clone(&self) -> LoopHandle<E> {
        LoopHandle(self.0.clone())
    }
}

impl<E> std::fmt::Debug for LoopHandle<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({} connections)", self.load())
    }
}

impl<E> LoopHandle<E> {
    /// Connections have tokens from `first` on.
    pub(crate) fn new(waker: Waker, first: Token) -> LoopHandle<E> {
        let queue = Queue { rung: Vec::new(), joining: Vec::new(), finish: None, more: false, asleep: false };
        let (next, load) = (AtomicUsize::new(first.0), AtomicUsize::new(0));
        LoopHandle(Arc::new(Shared { waker, queue: Mutex::new(queue), next, load }))
    }

    /// A bell for a connection that will join.
    pub(crate) fn bell(&self) -> Arc<ConnectionWaker<E>> {
        let token = Token(self.0.next.fetch_add(1, Ordering::Relaxed));
        Arc::new(ConnectionWaker { token, rung: AtomicBool::new(false), remote: Arc::downgrade(&self.0) })
    }

    /// Brings the connection that a bell is for. Where the loop is finishing it is closed.
    pub(crate) fn join(&self, bell: Arc<ConnectionWaker<E>>, connection: Socket<E>) {
        let mut queue = self.0.lock();
        if queue.finish.is_none() {
            self.0.load.fetch_add(1, Ordering::Relaxed);
            queue.joining.push((bell, Box::new(connection)));
            queue.more = true;
            self.0.wake(queue);
        }
    }

    /// The loop gets no more connections, and ends with the last one, at this moment at the latest.
    pub(crate) fn finish(&self, by: Instant) {
        let mut queue = self.0.lock();
        (queue.finish, queue.more) = (Some(by), true);
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

    /// The loop is about to wait for events; `false` if it must not, because something waits for it.
    pub(crate) fn sleep(&self) -> bool {
        let mut queue = self.0.lock();
        // Who rang for itself in its turn was heard in that turn.
        queue.rung.retain(|bell| bell.rung.load(Ordering::Acquire));
        queue.asleep = queue.rung.is_empty() && !queue.more;
        queue.asleep
    }

    /// The loop is awake, and takes all that waits.
    pub(crate) fn take(&self) -> Queue<E> {
        let mut queue = self.0.lock();
        let finish = queue.finish;
        let empty = Queue { rung: Vec::new(), joining: Vec::new(), finish, more: false, asleep: false };
        std::mem::replace(&mut *queue, empty)
    }
}

impl<E> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, Queue<E>> {
        self.queue.lock()
    }

    /// Unlocks, and wakes the loop where it sleeps: one system call for all that waits, and none while it is awake.
    fn wake(&self, mut queue: MutexGuard<'_, Queue<E>>) {
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep && let Err(error) = self.waker.wake() {
            tracing::error!(%error, "an event loop can not be woken");
        }
    }
}

/// Rings for one connection, from any thread, even when that is gone, or its loop.
pub(crate) struct ConnectionWaker<E> {
    token: Token,
    /// It rang, and the loop has not come yet. However often it rings, the loop comes once.
    rung: AtomicBool,
    remote: Weak<Shared<E>>,
}

impl<E> std::fmt::Debug for ConnectionWaker<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bell({})", self.token.0)
    }
}

impl<E> ConnectionWaker<E> {
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
    pub(crate) fn answer(&self) {
        self.rung.store(false, Ordering::Release);
    }

    /// The connection that it is for.
    pub(crate) fn token(&self) -> Token {
        self.token
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;

    fn remote() -> (Poll, LoopHandle<()>) {
        let poll = Poll::new().unwrap();
        let remote = LoopHandle::new(Waker::new(poll.registry(), Token(0)).unwrap(), Token(2));
        (poll, remote)
    }

    /// How many events there are, waiting for them.
    fn events(poll: &mut Poll, patience: Option<Duration>) -> usize {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, patience).unwrap();
        events.iter().count()
    }

    #[test]
    fn however_many_ring_however_often_the_loop_is_woken_once() {
        let (mut poll, remote) = remote();
        let bells: Vec<_> = (0..3).map(|_| remote.bell()).collect();
        assert!(remote.sleep());
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| (0..1000).for_each(|_| bells.iter().for_each(|bell| bell.ring())));
            }
        });
        assert_eq!(events(&mut poll, None), 1);
        let rung = remote.take().rung;
        rung.iter().for_each(|bell| bell.answer());
        let mut rung: Vec<Token> = rung.iter().map(|bell| bell.token()).collect();
        rung.sort();
        assert_eq!(rung, [Token(2), Token(3), Token(4)]);
        assert!(remote.take().rung.is_empty());
        // Nothing is left over, and the next one is heard again.
        assert_eq!(events(&mut poll, Some(Duration::ZERO)), 0);
        assert!(remote.sleep());
        bells[1].ring();
        assert_eq!(events(&mut poll, None), 1);
        assert_eq!(remote.take().rung.len(), 1);
    }

    #[test]
    fn a_loop_that_is_awake_is_not_woken_and_does_not_sleep_before_it_has_looked() {
        let (mut poll, remote) = remote();
        let bell = remote.bell();
        bell.ring();
        assert_eq!(events(&mut poll, Some(Duration::ZERO)), 0);
        assert!(!remote.sleep());
        assert_eq!(remote.take().rung.len(), 1);
        // It rang, and the loop was there already.
        bell.answer();
        bell.ring();
        bell.answer();
        assert!(remote.sleep());
        remote.take();
        remote.finish(Instant::now());
        assert_eq!(events(&mut poll, Some(Duration::ZERO)), 0);
        assert!(!remote.sleep());
    }
}
