//! What a session's helpers send it: from any thread, with one wake-up for all that waits, or with none.

use std::collections::VecDeque;

use crate::io::SinkEvent;
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};
use blobferry_protocol::{Oid, Reply, RequestError, RequestId, Tid};

use crate::server::detached::TransactionLease;
use crate::server::reads::Opened;

/// One piece of news for a session.
pub(super) enum Message {
    /// A request was answered.
    Reply { id: RequestId, result: Result<Reply, RequestError> },
    /// A blob that is to be sent was opened.
    Opened { id: RequestId, opened: Result<Opened, RequestError> },
    /// A client wants to go on with a transaction, and can or not.
    Attached { id: RequestId, attached: Result<Arc<TransactionLease>, RequestError> },
    /// The client goes on with a transaction elsewhere.
    Replaced,
    /// A sink has got on.
    Inlet(SinkEvent),
    /// A transaction was committed.
    Committed { tid: Tid, oids: Arc<[Oid]> },
}

/// A session's mailbox.
pub(super) struct Mailbox {
    waiting: Mutex<Waiting>,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Waiting {
    news: VecDeque<Message>,
    /// The session is at work, and looks in here before it rests: nobody has to wake it.
    attended: bool,
}

impl Mailbox {
    pub(super) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Arc<Mailbox> {
        Arc::new(Mailbox { waiting: Mutex::default(), wake })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    pub(super) fn post(&self, news: Message) {
        let mut waiting = self.waiting();
        waiting.news.push_back(news);
        let wake = waiting.news.len() == 1 && !waiting.attended;
        drop(waiting);
        if wake {
            (self.wake)();
        }
    }

    pub(super) fn reply(&self, id: RequestId, result: Result<Reply, RequestError>) {
        self.post(Message::Reply { id, result });
    }

    /// The session is at work, and looks in here before it [`leaves`](Self::leave).
    pub(super) fn attend(&self) {
        self.waiting().attended = true;
    }

    /// All that waits, in order.
    pub(super) fn take(&self) -> VecDeque<Message> {
        std::mem::take(&mut self.waiting().news)
    }

    /// The session is about to rest: whether it may. Then it is woken for what comes; else something has come.
    pub(super) fn leave(&self) -> bool {
        let mut waiting = self.waiting();
        waiting.attended = !waiting.news.is_empty();
        !waiting.attended
    }

    /// Wakes the session without news: somebody wants it to look at itself.
    pub(super) fn wake(&self) {
        (self.wake)();
    }
}

#[cfg(test)]
mod tests {
    use blobferry_platform::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_session_is_woken_once_for_all_that_waits_and_not_at_all_while_it_is_at_work() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let mailbox = Mailbox::new(Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
        let woken = || woken.swap(0, Ordering::SeqCst);
        mailbox.post(Message::Replaced);
        mailbox.post(Message::Replaced);
        assert_eq!((woken(), mailbox.take().len()), (1, 2));
        mailbox.attend();
        mailbox.post(Message::Replaced);
        assert!(!mailbox.leave());
        mailbox.post(Message::Replaced);
        assert_eq!((woken(), mailbox.take().len()), (0, 2));
        assert!(mailbox.leave());
        mailbox.post(Message::Replaced);
        assert_eq!((woken(), mailbox.take().len()), (1, 1));
    }
}
