//! Waiting for the answer of a call with a callback, as a future.

use blobferry_session::client::{CallError, Completion, Session};
use tokio::sync::oneshot;

/// Makes a call to a [`Session`] when the future is first polled, and waits for the callback's result.
///
/// # Cancel safety
/// The drop of the future does not take the call back.
///
/// # Errors
/// The call's own error; [`CallError::Unanswered`] if the callback was dropped without being called.
pub async fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap_or_else(|_| Err(CallError::Unanswered.into()))
}

/// Waits as [`wait`] does, for a call to a known session.
pub(crate) async fn wait_on<T: Send + 'static, E: From<CallError> + Send + 'static>(
    _: &Session,
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    wait(start).await
}
