//! A future for a callback: how simulated users wait for their calls.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use blobferry_platform::sync::Mutex;
use blobferry_session::client::Completion;

/// The answer to a call. It resolves to `None` if the completion was dropped without a result.
pub(super) struct Answer<T, E>(Arc<Mutex<Slot<T, E>>>);

struct Slot<T, E> {
    result: Option<Result<T, E>>,
    dropped: bool,
    waker: Option<Waker>,
}

/// The sending half of an [`Answer`]; the completion owns it.
struct Promise<T, E>(Arc<Mutex<Slot<T, E>>>);

/// Starts a call, and returns the future of its answer.
pub(super) fn call<T: Send + 'static, E: Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Answer<T, E> {
    let slot = Arc::new(Mutex::new(Slot { result: None, dropped: false, waker: None }));
    let promise = Promise(slot.clone());
    start(Box::new(move |result| promise.keep(result)));
    Answer(slot)
}

impl<T, E> Promise<T, E> {
    fn keep(&self, result: Result<T, E>) {
        self.0.lock().result = Some(result);
    }
}

impl<T, E> Drop for Promise<T, E> {
    fn drop(&mut self) {
        let mut slot = self.0.lock();
        slot.dropped = true;
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T, E> Future for Answer<T, E> {
    type Output = Option<Result<T, E>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.lock();
        match (slot.result.take(), slot.dropped) {
            (None, false) => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
            (result, _) => Poll::Ready(result),
        }
    }
}

/// A waker that sets a flag: its user is to be polled.
#[derive(Default)]
pub(super) struct WakeFlag(AtomicBool);

impl WakeFlag {
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}
