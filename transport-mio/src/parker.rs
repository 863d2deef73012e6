//! How a thread waits for one answer: it drives the connection that the answer comes from, or sleeps while others do.

use blobferry_platform::sync::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use blobferry_session::client::{CallError, Completion, Session};

use crate::leader::{LeaderFollowers, LeaderToken, Role};
use crate::thread_context;

/// Where a thread waits for an answer.
pub(crate) struct Parker {
    thread: Thread,
    done: AtomicBool,
    /// The lead that it was given while it slept.
    lead: Mutex<Option<LeaderToken>>,
    /// The connection that it drives: it sleeps there, where it does.
    drives: Mutex<Option<Arc<LeaderFollowers>>>,
}

impl Parker {
    fn new() -> Parker {
        let thread = thread::current();
        Parker { thread, done: AtomicBool::new(false), lead: Mutex::default(), drives: Mutex::default() }
    }

    /// Is the answer there?
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// The answer is there, or will never be.
    fn finish(&self) {
        self.done.store(true, Ordering::Release);
        match &*self.drives.lock() {
            Some(crew) => crew.rouse_leader(),
            None => self.thread.unpark(),
        }
    }

    /// Gives a sleeping follower the lead.
    pub(crate) fn give(&self, lead: LeaderToken) {
        *self.lead.lock() = Some(lead);
        self.thread.unpark();
    }

    /// Waits until the answer is there; on a client's own thread only while there is a connection, as nobody else would
    /// make another.
    fn wait(self: &Arc<Self>, crew: Option<Arc<LeaderFollowers>>) {
        let bound = thread_context::is_clients();
        let Some(crew) = crew else { return self.sleep(|| bound) };
        if self.is_done() {
            return crew.need_not();
        }
        while !self.is_done() {
            match crew.join(self) {
                Role::Leader(lead) => self.drive(&crew, lead),
                Role::Follower(number) => {
                    self.sleep(|| self.lead.lock().is_some() || bound && crew.has_ended());
                    if !crew.unfollow(number)
                        && let Some(lead) = self.lead.lock().take()
                    {
                        self.drive(&crew, lead);
                    }
                }
                Role::Disconnected => return self.sleep(|| bound),
            }
        }
    }

    /// Has a sleeper look around.
    pub(crate) fn nudge(&self) {
        self.thread.unpark();
    }

    fn drive(&self, crew: &Arc<LeaderFollowers>, lead: LeaderToken) {
        *self.drives.lock() = Some(crew.clone());
        crew.lead_for(lead, self);
        *self.drives.lock() = None;
    }

    fn sleep(&self, until: impl Fn() -> bool) {
        while !self.is_done() && !until() {
            thread::park();
        }
    }
}

/// An answer that somebody waits for.
struct Awaited<T> {
    seat: Arc<Parker>,
    answer: Arc<Mutex<Option<T>>>,
}

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        self.seat.finish();
    }
}

/// Blocks the thread until a callback is called: for calls to a [`Session`], whoever drives it. Where that is a
/// [`Client`](crate::Client), and nobody else does at the moment, this thread does, and may call callbacks of others
/// meanwhile. May be used in a callback; there it does not outlast the connection.
///
/// # Errors
/// The call's; [`CallError::Unanswered`] where nobody is left to answer.
pub fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    wait_with(start, || None)
}

/// The same for a call to a known session: its connection is driven also where the call is sent by another thread.
pub(crate) fn wait_on<T: Send + 'static, E: From<CallError> + Send + 'static>(
    session: &Session,
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    wait_with(start, || thread_context::call(|| session.wake()))
}

fn wait_with<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
    find: impl FnOnce() -> Option<Arc<LeaderFollowers>>,
) -> Result<T, E> {
    thread_context::give_up_leads();
    let (seat, answer) = (Arc::new(Parker::new()), Arc::default());
    let awaited = Awaited { seat: seat.clone(), answer: Arc::clone(&answer) };
    let crew = thread_context::call(|| start(Box::new(move |result| *awaited.answer.lock() = Some(result))));
    seat.wait(crew.or_else(|| if seat.is_done() { None } else { find() }));
    let answer = answer.lock().take();
    answer.unwrap_or_else(|| Err(CallError::Unanswered.into()))
}
