//! The threads of loops.

use std::io;
use std::thread::{self, Builder, JoinHandle};

/// Starts one. Linux shows 15 bytes of its name.
pub(crate) fn start<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(run)
}

/// Waits until one has ended; `None` where it panicked, or is the one that would wait: the last owner of a loop may be
/// dropped by a callback that the loop itself has called.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    (thread.thread().id() != thread::current().id()).then(|| thread.join().ok())?
}
