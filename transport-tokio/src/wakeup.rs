//! How others reach the task of a connection: they ring. A task that is awake is not woken for that, it looks before it
//! sleeps.

use blobferry_platform::sync::{Mutex, MutexGuard};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

/// A task's bell.
#[derive(Debug, Default)]
pub(crate) struct TaskWaker {
    /// It rang, and the task has not looked yet.
    rung: AtomicBool,
    /// The task, while it sleeps.
    sleeper: Mutex<Option<Waker>>,
}

impl TaskWaker {
    fn sleeper(&self) -> MutexGuard<'_, Option<Waker>> {
        self.sleeper.lock()
    }

    /// Has the task look, from any thread.
    pub(crate) fn ring(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let sleeper = self.sleeper().take();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// Has it rung since it was heard?
    pub(crate) fn has_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Whether it rang since the task looked last.
    pub(crate) fn hear(&self) -> bool {
        self.has_rung() && self.rung.swap(false, Ordering::AcqRel)
    }

    /// The task is awake, whatever has woken it.
    pub(crate) fn awake(&self) {
        *self.sleeper() = None;
    }

    /// The task is about to sleep; `false` if it must not, because it rang.
    pub(crate) fn sleep(&self, context: &Context<'_>) -> bool {
        let mut sleeper = self.sleeper();
        // Who rings from here on waits for the lock, and finds the sleeper.
        if self.has_rung() {
            return false;
        }
        *sleeper = Some(context.waker().clone());
        true
    }

    /// Waits until it rings.
    pub(crate) async fn rung(&self) {
        poll_fn(|context| match !self.hear() && self.sleep(context) {
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
    fn a_task_that_is_awake_is_not_woken_and_one_that_sleeps_is_woken_once() {
        let (bell, count) = (TaskWaker::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let context = Context::from_waker(&waker);
        bell.ring();
        assert!(!bell.sleep(&context) && bell.hear() && !bell.hear());
        assert!(bell.sleep(&context));
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        std::thread::scope(|threads| {
            (0..4).for_each(|_| drop(threads.spawn(|| (0..1000).for_each(|_| bell.ring()))));
        });
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(bell.hear() && bell.sleep(&context));
        // Something else has woken it.
        bell.awake();
        bell.ring();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
