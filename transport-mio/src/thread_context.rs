//! What a thread is doing: the call that it makes, the connections that it leads, and whether a client owns it.
//!
//! A call does not name the connection that its request is sent on. The connection is noted here when the call wakes
//! it, so that the calling thread can drive that connection while it waits for the answer.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::parker::{Driven, LeaderToken};

thread_local! {
    static OWNS_CONNECTIONS: Cell<bool> = const { Cell::new(false) };
    static PENDING: RefCell<PendingWait> = const { RefCell::new(PendingWait::None) };
    /// The connections that this thread leads while it runs callbacks, innermost last.
    static LEADS: RefCell<Vec<(Arc<dyn Driven>, LeaderToken)>> = const { RefCell::new(Vec::new()) };
}

/// Returns whether this is a client's own thread. It makes the connections, so it must not wait for one.
pub(crate) fn owns_connections() -> bool {
    OWNS_CONNECTIONS.get()
}

/// Marks this thread as a client's own.
pub(crate) fn set_owns_connections() {
    OWNS_CONNECTIONS.set(true);
}

/// A call for whose answer the thread is about to wait.
enum PendingWait {
    None,
    /// The call is being made.
    Started,
    /// The call has woken this connection.
    Woke(Arc<dyn Driven>),
}

/// Makes a call for whose answer the thread is about to wait, and returns the connection that it woke.
pub(crate) fn call(start: impl FnOnce()) -> Option<Arc<dyn Driven>> {
    /// A callback may make a call within a call. The outer one is restored afterwards.
    struct Outer(Option<PendingWait>);
    impl Drop for Outer {
        fn drop(&mut self) {
            let pending = PENDING.replace(self.0.take().unwrap_or(PendingWait::None));
            // This happens only when the call panicked: the thread will not wait.
            if let PendingWait::Woke(connection) = pending {
                connection.cancel_wait();
            }
        }
    }
    let _outer = Outer(Some(PENDING.replace(PendingWait::Started)));
    start();
    match PENDING.replace(PendingWait::None) {
        PendingWait::Woke(connection) => Some(connection),
        PendingWait::None | PendingWait::Started => None,
    }
}

/// Notes that the thread has woken a connection. Returns whether the thread is about to wait for its answer.
pub(crate) fn note_wake(connection: Arc<dyn Driven>) -> bool {
    PENDING.with_borrow_mut(|pending| match pending {
        PendingWait::None => false,
        PendingWait::Started => {
            *pending = PendingWait::Woke(connection);
            true
        }
        PendingWait::Woke(woken) => Arc::ptr_eq(woken, &connection),
    })
}

/// Runs callbacks while the thread leads a connection.
pub(crate) fn lead_while(connection: Arc<dyn Driven>, token: LeaderToken, run_callbacks: impl FnOnce()) {
    struct Led;
    impl Drop for Led {
        fn drop(&mut self) {
            LEADS.with_borrow_mut(Vec::pop);
        }
    }
    LEADS.with_borrow_mut(|leads| leads.push((connection, token)));
    let _led = Led;
    run_callbacks();
}

/// Gives up every leadership of this thread. A thread does so before it waits for other threads, which may need one of
/// these connections.
pub(crate) fn give_up_leads() {
    let leads = LEADS.with_borrow(Vec::clone);
    leads.into_iter().for_each(|(connection, token)| connection.leave(token));
}
