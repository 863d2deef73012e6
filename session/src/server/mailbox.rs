//! A queue of messages to a handler, which any thread may post to. The handler is woken once for all waiting messages,
//! and not at all while it is at work.

use std::collections::VecDeque;

use blobferry_platform::sync::{Arc, Mutex, MutexGuard};

/// The mailbox of one handler.
pub(super) struct Mailbox<M> {
    state: Mutex<State<M>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct State<M> {
    messages: VecDeque<M>,
    /// The handler is at work, and drains the mailbox before it goes idle: it needs no wake-up.
    is_polled: bool,
}

impl<M> Mailbox<M> {
    /// Creates an empty mailbox. `wake` is called from any thread.
    pub(super) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Arc<Mailbox<M>> {
        let state = Mutex::new(State { messages: VecDeque::new(), is_polled: false });
        Arc::new(Mailbox { state, wake })
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock()
    }

    /// Queues a message, and wakes the handler if it is the first and the handler is idle.
    pub(super) fn post(&self, message: M) {
        let mut state = self.state();
        state.messages.push_back(message);
        let wake = state.messages.len() == 1 && !state.is_polled;
        drop(state);
        if wake {
            (self.wake)();
        }
    }

    /// Notes that the handler is at work. It must call [`end_poll`](Self::end_poll) before it goes idle.
    pub(super) fn begin_poll(&self) {
        self.state().is_polled = true;
    }

    /// Takes all messages, in order.
    pub(super) fn take(&self) -> VecDeque<M> {
        std::mem::take(&mut self.state().messages)
    }

    /// Returns whether the handler may go idle. It is then woken for the next message. Otherwise messages have arrived,
    /// and the handler must take them first.
    pub(super) fn end_poll(&self) -> bool {
        let mut state = self.state();
        state.is_polled = !state.messages.is_empty();
        !state.is_polled
    }

    /// Wakes the handler without a message.
    pub(super) fn wake(&self) {
        (self.wake)();
    }
}

#[cfg(test)]
mod tests {
    use blobferry_platform::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn handler_is_woken_once_and_not_while_it_polls() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let mailbox = Mailbox::new(Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
        let woken = || woken.swap(0, Ordering::SeqCst);
        mailbox.post(());
        mailbox.post(());
        assert_eq!((woken(), mailbox.take().len()), (1, 2));
        mailbox.begin_poll();
        mailbox.post(());
        assert!(!mailbox.end_poll());
        mailbox.post(());
        assert_eq!((woken(), mailbox.take().len()), (0, 2));
        assert!(mailbox.end_poll());
        mailbox.post(());
        assert_eq!((woken(), mailbox.take().len()), (1, 1));
    }
}
