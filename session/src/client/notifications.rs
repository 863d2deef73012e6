//! A bounded queue of notifications, from a session to a receiver that blocks or awaits.
//!
//! Beyond [`MAX_WEIGHT`] the queued notifications are coalesced, so a slow receiver costs bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blobferry_platform::sync::{Condvar, Mutex};

use crate::client::events::{ConnectionEvent, Invalidation};

/// The weight of all queued notifications, at most. An object that has changed weighs 1.
const MAX_WEIGHT: usize = 100_000;

/// A notification that can be coalesced if too many are queued.
pub trait Coalesce: Clone {
    /// Returns the weight of this notification: about a hundredth of its bytes, or its number of objects.
    fn weight(&self) -> usize;

    /// Shrinks the queue. The newest notification, or what stands for it, stays.
    fn coalesce(queued: &mut VecDeque<Self>);
}

impl Coalesce for Invalidation {
    fn weight(&self) -> usize {
        8 + self.oids.as_ref().map_or(0, |oids| oids.len())
    }

    /// Replaces all by one: every object may have changed, up to the newest transaction.
    fn coalesce(queued: &mut VecDeque<Invalidation>) {
        let newest = queued.back().map(|newest| Invalidation { tid: newest.tid, oids: None });
        *queued = newest.into_iter().collect();
    }
}

impl Coalesce for ConnectionEvent {
    fn weight(&self) -> usize {
        100
    }

    /// Drops the older half.
    fn coalesce(queued: &mut VecDeque<ConnectionEvent>) {
        queued.drain(..queued.len() / 2);
    }
}

/// The client has ended, and all its notifications were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has ended: there are no more notifications")]
pub struct Ended;

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Notified for a receiver that blocks.
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    queued: VecDeque<T>,
    weight: usize,
    /// The task of a receiver that awaits.
    task: Option<Waker>,
    sender_dropped: bool,
    receiver_dropped: bool,
}

impl<T: Coalesce> State<T> {
    fn push(&mut self, notification: T) {
        self.weight += notification.weight();
        self.queued.push_back(notification);
        if self.weight > MAX_WEIGHT {
            T::coalesce(&mut self.queued);
            self.weight = self.queued.iter().map(T::weight).sum();
        }
    }

    fn pop(&mut self) -> Result<Option<T>, Ended> {
        match self.queued.pop_front() {
            Some(first) => {
                self.weight = self.weight.saturating_sub(first.weight());
                Ok(Some(first))
            }
            None if self.sender_dropped => Err(Ended),
            None => Ok(None),
        }
    }
}

/// Puts notifications into a queue. Its drop ends the queue.
#[derive(Debug)]
pub struct NotificationSender<T>(Arc<Shared<T>>);

/// A queue of notifications, from the side that receives them.
#[derive(Debug)]
pub struct NotificationQueue<T>(Arc<Shared<T>>);

impl<T: Coalesce> NotificationQueue<T> {
    /// Creates an empty queue.
    #[must_use]
    pub fn new() -> (NotificationSender<T>, NotificationQueue<T>) {
        let (queued, task) = (VecDeque::new(), None);
        let state = State { queued, weight: 0, task, sender_dropped: false, receiver_dropped: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        (NotificationSender(shared.clone()), NotificationQueue(shared))
    }

    /// Takes the oldest notification without waiting. Returns `None` if there is none yet.
    ///
    /// # Errors
    /// [`Ended`] if there will be none.
    pub fn try_pop(&self) -> Result<Option<T>, Ended> {
        self.0.state.lock().pop()
    }

    /// Takes the oldest notification, and blocks the thread until there is one.
    ///
    /// # Errors
    /// [`Ended`] if there will be none.
    pub fn pop(&self) -> Result<T, Ended> {
        let mut state = self.0.state.lock();
        loop {
            if let Some(first) = state.pop()? {
                return Ok(first);
            }
            state = self.0.changed.wait(state);
        }
    }

    /// Takes the oldest notification, and blocks the thread for at most `timeout` until there is one. Returns `None` if
    /// the time ran out.
    ///
    /// # Errors
    /// [`Ended`] if there will be none.
    pub fn pop_timeout(&self, timeout: Duration) -> Result<Option<T>, Ended> {
        let is_idle = |state: &mut State<T>| state.queued.is_empty() && !state.sender_dropped;
        self.0.changed.wait_timeout_while(self.0.state.lock(), timeout, is_idle).pop()
    }

    /// Takes the oldest notification, or registers the task to be woken when there is one. Only the task of the last
    /// call is woken.
    pub fn poll_pop(&self, context: &Context<'_>) -> Poll<Result<T, Ended>> {
        let mut state = self.0.state.lock();
        match state.pop().transpose() {
            Some(next) => Poll::Ready(next),
            None => {
                state.task = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T: Coalesce> NotificationSender<T> {
    /// Queues a notification. Returns `false` if the receiver was dropped.
    pub fn notify(&self, notification: &T) -> bool {
        let mut state = self.0.state.lock();
        if state.receiver_dropped {
            return false;
        }
        state.push(notification.clone());
        let task = state.task.take();
        drop(state);
        self.0.wake(task);
        true
    }
}

impl<T> Shared<T> {
    fn wake(&self, task: Option<Waker>) {
        self.changed.notify_all();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<T> Drop for NotificationSender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.sender_dropped = true;
        let task = state.task.take();
        drop(state);
        self.0.wake(task);
    }
}

impl<T> Drop for NotificationQueue<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.receiver_dropped = true;
        state.queued.clear();
    }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::{Oid, Tid};

    use super::*;

    fn commit(tid: u64, oids: usize) -> Invalidation {
        Invalidation { tid: Tid(tid), oids: Some(vec![Oid(tid); oids].into()) }
    }

    fn drain<T: Coalesce>(queue: &NotificationQueue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.try_pop().unwrap()).collect()
    }

    #[test]
    fn notifications_are_received_in_order() {
        let (sender, queue) = NotificationQueue::new();
        let commits: Vec<Invalidation> = (1..1000).map(|tid| commit(tid, 2)).collect();
        // Many times over: a received notification takes no more room.
        for _ in 0..20 {
            commits.iter().for_each(|commit| assert!(sender.notify(commit)));
            assert_eq!(drain(&queue), commits);
        }
    }

    #[test]
    fn too_many_invalidations_become_one_for_all_objects() {
        let (sender, queue) = NotificationQueue::new();
        for tid in 1..=1_000_000 {
            sender.notify(&commit(tid, 3));
            let state = queue.0.state.lock();
            assert!(state.queued.len() <= MAX_WEIGHT / 8 && state.weight <= MAX_WEIGHT);
        }
        let received = drain(&queue);
        assert_eq!(received[0].oids, None);
        assert_eq!(received.last(), Some(&commit(1_000_000, 3)));
        let tids = received.windows(2).all(|two| two[0].tid.0 + 1 == two[1].tid.0);
        assert!(tids, "nothing is missing behind the first");
        // One that is too large by itself.
        sender.notify(&commit(5, MAX_WEIGHT));
        assert_eq!(queue.try_pop(), Ok(Some(Invalidation { tid: Tid(5), oids: None })));
        assert_eq!(queue.try_pop(), Ok(None));
    }

    #[test]
    fn old_connection_events_are_dropped_in_time() {
        let (sender, queue) = NotificationQueue::new();
        let event = |n: u64| ConnectionEvent::Connected { address: n.to_string() };
        (0..10_000).for_each(|n| assert!(sender.notify(&event(n))));
        let received = drain(&queue);
        assert!(received.len() <= MAX_WEIGHT / 100);
        assert_eq!(received.last(), Some(&event(9999)));
    }

    #[test]
    fn nothing_yet_and_ended_are_told_apart() {
        let (sender, queue) = NotificationQueue::new();
        assert_eq!((queue.try_pop(), queue.pop_timeout(Duration::from_millis(1))), (Ok(None), Ok(None)));
        sender.notify(&commit(1, 1));
        drop(sender);
        assert_eq!(queue.pop(), Ok(commit(1, 1)));
        assert_eq!((queue.try_pop(), queue.pop()), (Err(Ended), Err(Ended)));
        assert_eq!(queue.pop_timeout(Duration::MAX), Err(Ended));
        let (sender, queue) = NotificationQueue::new();
        drop(queue);
        assert!(!sender.notify(&commit(1, 1)));
    }

    #[test]
    fn a_blocked_receiver_is_woken_by_a_notification_and_by_the_end() {
        let (sender, queue) = NotificationQueue::new();
        std::thread::scope(|threads| {
            let receiver = threads.spawn(move || (queue.pop(), queue.pop()));
            sender.notify(&commit(7, 1));
            drop(sender);
            assert_eq!(receiver.join().unwrap(), (Ok(commit(7, 1)), Err(Ended)));
        });
    }
}
