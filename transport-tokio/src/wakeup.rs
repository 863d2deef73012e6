//! How other threads wake the task of a connection. An awake task is not woken: it checks before it sleeps.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use blobferry_platform::sync::{Mutex, MutexGuard};

/// Wakes one task. Any number of wake-ups before its next turn count as one.
#[derive(Debug, Default)]
pub(crate) struct TaskWaker {
    /// The task was woken, and has not taken notice yet.
    pending: AtomicBool,
    /// The task, while it sleeps.
    sleeper: Mutex<Option<Waker>>,
}

impl TaskWaker {
    fn sleeper(&self) -> MutexGuard<'_, Option<Waker>> {
        self.sleeper.lock()
    }

    /// Wakes the task, from any thread.
    pub(crate) fn wake(&self) {
        if self.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        let sleeper = self.sleeper().take();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// Returns whether a wake-up is pending.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Clears a pending wake-up, and returns whether there was one.
    pub(crate) fn take(&self) -> bool {
        self.is_pending() && self.pending.swap(false, Ordering::AcqRel)
    }

    /// Notes that the task is awake, for whatever reason.
    pub(crate) fn set_awake(&self) {
        *self.sleeper() = None;
    }

    /// Notes that the task is about to sleep. Returns `false` if it must not, because a wake-up is pending.
    pub(crate) fn sleep(&self, context: &Context<'_>) -> bool {
        let mut sleeper = self.sleeper();
        // A later wake-up waits for the lock, and then finds the sleeper.
        if self.is_pending() {
            return false;
        }
        *sleeper = Some(context.waker().clone());
        true
    }

    /// Waits for a wake-up.
    #[cfg_attr(not(feature = "client"), expect(dead_code, reason = "only clients wait for it"))]
    pub(crate) async fn woken(&self) {
        poll_fn(|context| match !self.take() && self.sleep(context) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_awake_task_is_not_woken_and_a_sleeping_one_once() {
        let (wakeup, count) = (TaskWaker::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let context = Context::from_waker(&waker);
        wakeup.wake();
        assert!(!wakeup.sleep(&context) && wakeup.take() && !wakeup.take());
        assert!(wakeup.sleep(&context));
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        std::thread::scope(|threads| {
            (0..4).for_each(|_| drop(threads.spawn(|| (0..1000).for_each(|_| wakeup.wake()))));
        });
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(wakeup.take() && wakeup.sleep(&context));
        // Something else has woken the task.
        wakeup.set_awake();
        wakeup.wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
