//! Starting and joining the threads of clients and servers.

use std::io;
use std::thread::{self, Builder, JoinHandle};

/// Starts a thread. Linux shows the first 15 bytes of its name.
pub(crate) fn start<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(run)
}

/// Waits for the end of a thread, and returns its result. Returns `None` if the thread panicked or is the current one:
/// a callback that a thread runs may drop the last owner of that thread.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    (thread.thread().id() != thread::current().id()).then(|| thread.join().ok())?
}
