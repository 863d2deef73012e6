//! How other threads reach an event loop: they wake one connection, add a connection, or end the loop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use blobferry_platform::sync::{Mutex, MutexGuard};
use mio::{Token, Waker};

use crate::socket::Socket;

/// A handle to an event loop, for other threads. Clones refer to the same loop.
pub(crate) struct LoopHandle<E>(Arc<Shared<E>>);

struct Shared<E> {
    waker: Waker,
    queue: Mutex<Queue<E>>,
    /// The token of the next connection. No token is used twice, so a late wake-up reaches no other connection.
    next_token: AtomicUsize,
    /// How many connections the loop has or will have.
    connections: AtomicUsize,
}

/// A connection that is to join a loop, and its waker.
type Joining<E> = (Arc<ConnectionWaker<E>>, Box<Socket<E>>);

/// What other threads have queued for a loop since it last took the queue.
pub(crate) struct Queue<E> {
    /// The connections that were woken.
    pub(crate) woken: Vec<Arc<ConnectionWaker<E>>>,
    /// New connections.
    pub(crate) joining: Vec<Joining<E>>,
    /// No more connections come. The loop ends with its last one, and at this moment at the latest.
    pub(crate) finish: Option<Instant>,
    /// The queue has more than wake-ups: a new connection, or the end.
    has_message: bool,
    /// The loop waits for events, and was not woken. An awake loop takes the queue before it waits.
    asleep: bool,
}

impl<E> Clone for LoopHandle<E> {
    fn clone(&self) -> LoopHandle<E> {
        LoopHandle(self.0.clone())
    }
}

impl<E> std::fmt::Debug for LoopHandle<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoopHandle({} connections)", self.connections())
    }
}

impl<E> LoopHandle<E> {
    /// Creates the handle of a loop whose connections have tokens from `first` on.
    pub(crate) fn new(waker: Waker, first: Token) -> LoopHandle<E> {
        let (woken, joining) = (Vec::new(), Vec::new());
        let queue = Queue { woken, joining, finish: None, has_message: false, asleep: false };
        let (next_token, connections) = (AtomicUsize::new(first.0), AtomicUsize::new(0));
        LoopHandle(Arc::new(Shared { waker, queue: Mutex::new(queue), next_token, connections }))
    }

    /// Creates the waker of a connection that will join.
    pub(crate) fn connection_waker(&self) -> Arc<ConnectionWaker<E>> {
        let token = Token(self.0.next_token.fetch_add(1, Ordering::Relaxed));
        Arc::new(ConnectionWaker { token, pending: AtomicBool::new(false), shared: Arc::downgrade(&self.0) })
    }

    /// Adds the connection that a waker was created for. If the loop is finishing, the connection is closed.
    pub(crate) fn join(&self, waker: Arc<ConnectionWaker<E>>, connection: Socket<E>) {
        let mut queue = self.0.lock();
        if queue.finish.is_none() {
            self.0.connections.fetch_add(1, Ordering::Relaxed);
            queue.joining.push((waker, Box::new(connection)));
            queue.has_message = true;
            self.0.wake(queue);
        }
    }

    /// Ends the loop with its last connection, and at the moment `by` at the latest. It gets no more connections.
    pub(crate) fn finish(&self, by: Instant) {
        let mut queue = self.0.lock();
        (queue.finish, queue.has_message) = (Some(by), true);
        self.0.wake(queue);
    }

    /// Returns how many connections the loop has or will have.
    pub(crate) fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection that has ended.
    pub(crate) fn note_end(&self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Announces that the loop is about to wait for events. Returns `false` if it must not, because the queue is not
    /// empty.
    pub(crate) fn sleep(&self) -> bool {
        let mut queue = self.0.lock();
        // A connection that woke itself in its own turn was served in that turn.
        queue.woken.retain(|waker| waker.pending.load(Ordering::Acquire));
        queue.asleep = queue.woken.is_empty() && !queue.has_message;
        queue.asleep
    }

    /// Takes the queue, and announces that the loop is awake.
    pub(crate) fn take(&self) -> Queue<E> {
        let mut queue = self.0.lock();
        let (woken, joining, finish) = (Vec::new(), Vec::new(), queue.finish);
        let empty = Queue { woken, joining, finish, has_message: false, asleep: false };
        std::mem::replace(&mut *queue, empty)
    }
}

impl<E> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, Queue<E>> {
        self.queue.lock()
    }

    /// Unlocks the queue, and wakes the loop if it sleeps. One system call serves everything that is queued meanwhile.
    fn wake(&self, mut queue: MutexGuard<'_, Queue<E>>) {
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep && let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake an event loop");
        }
    }
}

/// Wakes one connection from any thread. After the end of the connection or of its loop it does nothing.
pub(crate) struct ConnectionWaker<E> {
    token: Token,
    /// The connection was woken, and has not had its turn. Any number of wake-ups leads to one turn.
    pending: AtomicBool,
    shared: Weak<Shared<E>>,
}

impl<E> std::fmt::Debug for ConnectionWaker<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnectionWaker({})", self.token.0)
    }
}

impl<E> ConnectionWaker<E> {
    /// Makes the loop give the connection a turn.
    pub(crate) fn wake(self: &Arc<Self>) {
        if !self.pending.swap(true, Ordering::AcqRel)
            && let Some(shared) = self.shared.upgrade()
        {
            let mut queue = shared.lock();
            queue.woken.push(self.clone());
            shared.wake(queue);
        }
    }

    /// Clears the wake-up at the connection's turn. Later wake-ups count again.
    pub(crate) fn clear(&self) {
        self.pending.store(false, Ordering::Release);
    }

    /// Returns the token of the connection.
    pub(crate) fn token(&self) -> Token {
        self.token
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;

    fn handle() -> (Poll, LoopHandle<()>) {
        let poll = Poll::new().unwrap();
        let handle = LoopHandle::new(Waker::new(poll.registry(), Token(0)).unwrap(), Token(2));
        (poll, handle)
    }

    /// Waits for events, and returns how many there are.
    fn events(poll: &mut Poll, timeout: Option<Duration>) -> usize {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, timeout).unwrap();
        events.iter().count()
    }

    #[test]
    fn any_number_of_wakeups_wakes_the_loop_once() {
        let (mut poll, handle) = handle();
        let wakers: Vec<_> = (0..3).map(|_| handle.connection_waker()).collect();
        assert!(handle.sleep());
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| (0..1000).for_each(|_| wakers.iter().for_each(|waker| waker.wake())));
            }
        });
        assert_eq!(events(&mut poll, None), 1);
        let woken = handle.take().woken;
        woken.iter().for_each(|waker| waker.clear());
        let mut woken: Vec<Token> = woken.iter().map(|waker| waker.token()).collect();
        woken.sort();
        assert_eq!(woken, [Token(2), Token(3), Token(4)]);
        assert!(handle.take().woken.is_empty());
        // Nothing is left over, and the next wake-up counts again.
        assert_eq!(events(&mut poll, Some(Duration::ZERO)), 0);
        assert!(handle.sleep());
        wakers[1].wake();
        assert_eq!(events(&mut poll, None), 1);
        assert_eq!(handle.take().woken.len(), 1);
    }

    #[test]
    fn an_awake_loop_is_not_woken_but_must_not_sleep() {
        let (mut poll, handle) = handle();
        let waker = handle.connection_waker();
        waker.wake();
        assert_eq!(events(&mut poll, Some(Duration::ZERO)), 0);
        assert!(!handle.sleep());
        assert_eq!(handle.take().woken.len(), 1);
        // The wake-up came in the connection's own turn.
        waker.clear();
        waker.wake();
        waker.clear();
        assert!(handle.sleep());
        handle.take();
        handle.finish(Instant::now());
        assert_eq!(events(&mut poll, Some(Duration::ZERO)), 0);
        assert!(!handle.sleep());
    }
}
