//! What a session's helpers send it: from any thread, with one wake-up for all that waits.

use std::collections::VecDeque;

use blobferry_cache::carry::Report;
use blobferry_cache::sync::{Arc, Mutex, PoisonError};
use blobferry_protocol::{Oid, Reply, RequestError, RequestId, Tid};

use super::keep::Hold;
use super::reads::Opened;

/// One piece of news for a session.
pub(super) enum News {
    /// A request was answered.
    Reply { id: RequestId, result: Result<Reply, RequestError> },
    /// A blob that is to be sent was opened.
    Opened { id: RequestId, opened: Result<Opened, RequestError> },
    /// A client wants to go on with a transaction, and can or not.
    Attached { id: RequestId, attached: Result<Arc<Hold>, RequestError> },
    /// The client goes on with a transaction elsewhere.
    Replaced,
    /// A sink has got on.
    Inlet(Report),
    /// A transaction was committed.
    Committed { tid: Tid, oids: Arc<[Oid]> },
}

/// A session's mailbox.
pub(super) struct Mailbox {
    news: Mutex<VecDeque<News>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Mailbox {
    pub(super) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Arc<Mailbox> {
        Arc::new(Mailbox { news: Mutex::default(), wake })
    }

    pub(super) fn post(&self, news: News) {
        let mut waiting = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(news);
        let first = waiting.len() == 1;
        drop(waiting);
        if first {
            (self.wake)();
        }
    }

    pub(super) fn reply(&self, id: RequestId, result: Result<Reply, RequestError>) {
        self.post(News::Reply { id, result });
    }

    /// All that waits, in order.
    pub(super) fn take(&self) -> VecDeque<News> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wakes the session without news: somebody wants it to look at itself.
    pub(super) fn wake(&self) {
        (self.wake)();
    }
}
