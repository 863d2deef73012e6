//! Waiting for the answer of a call with a callback, on the thread that makes the call.

use std::sync::Arc;

use blobferry_platform::sync::Mutex;
use blobferry_session::client::{CallError, Completion, Session};

use crate::parker::{Driven, Parker};
use crate::thread_context;

/// The answer that a thread waits for. Its drop ends the wait, with or without an answer.
struct Awaited<T> {
    parker: Arc<Parker>,
    answer: Arc<Mutex<Option<T>>>,
}

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        self.parker.finish();
    }
}

/// Blocks the thread until the callback of a call to a [`Session`] is called, and returns its result.
///
/// If a [`Client`](crate::Client) of this crate drives the session and no other thread does so now, this thread drives
/// its connection. It may then run callbacks of other threads. The function may be used inside a callback; there it
/// returns when the connection ends.
///
/// # Errors
/// The call's own error; [`CallError::Unanswered`] if the callback was dropped without being called.
pub fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    wait_with(start, || None)
}

/// Blocks as [`wait`] does, for a call to a known session. The thread drives the session's connection even if another
/// thread sends the request.
pub(crate) fn wait_on<T: Send + 'static, E: From<CallError> + Send + 'static>(
    session: &Session,
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    wait_with(start, || thread_context::call(|| session.wake()))
}

fn wait_with<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
    find_connection: impl FnOnce() -> Option<Arc<dyn Driven>>,
) -> Result<T, E> {
    thread_context::give_up_leads();
    let (parker, answer) = (Arc::new(Parker::new()), Arc::default());
    let awaited = Awaited { parker: parker.clone(), answer: Arc::clone(&answer) };
    let woken = thread_context::call(|| start(Box::new(move |result| *awaited.answer.lock() = Some(result))));
    let connection = woken.or_else(|| if parker.is_done() { None } else { find_connection() });
    parker.wait(connection, thread_context::owns_connections());
    let answer = answer.lock().take();
    answer.unwrap_or_else(|| Err(CallError::Unanswered.into()))
}
