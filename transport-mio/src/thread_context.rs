//! What this thread is at: whether it is about to wait for an answer, which connections it leads while it calls
//! callbacks, and whether it belongs to a client.
//!
//! A call says nothing of the connection that it is sent on, and needs not: who calls and will wait for the answer rings
//! on its own thread, and is remembered here as one who will see to that connection itself.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::leader::{LeaderFollowers, LeaderToken};

thread_local! {
    static OWN: Cell<bool> = const { Cell::new(false) };
    static CALL: RefCell<Call> = const { RefCell::new(Call::None) };
    /// Innermost last.
    static LEADS: RefCell<Vec<(Arc<LeaderFollowers>, LeaderToken)>> = const { RefCell::new(Vec::new()) };
}

/// This is the thread of a client, which makes connections: it must not wait for one.
pub(crate) fn is_clients() -> bool {
    OWN.get()
}

/// From here on it is.
pub(crate) fn becomes_clients() {
    OWN.set(true);
}

/// A call for whose answer the thread will wait.
enum Call {
    None,
    /// It is being made.
    Begun,
    /// It was sent, or is to be.
    Rang(Arc<LeaderFollowers>),
}

/// Makes a call for whose answer the thread will wait; the connection that it rang for.
pub(crate) fn call(start: impl FnOnce()) -> Option<Arc<LeaderFollowers>> {
    /// A call within a call, by a callback, leaves the outer one as it was.
    struct Outer(Option<Call>);
    impl Drop for Outer {
        fn drop(&mut self) {
            let call = CALL.replace(self.0.take().unwrap_or(Call::None));
            // Only where the call has panicked: nobody will wait.
            if let Call::Rang(crew) = call {
                crew.need_not();
            }
        }
    }
    let _outer = Outer(Some(CALL.replace(Call::Begun)));
    start();
    match CALL.replace(Call::None) {
        Call::Rang(crew) => Some(crew),
        Call::None | Call::Begun => None,
    }
}

/// The thread has rung for a connection; whether it will wait for an answer.
pub(crate) fn rang(crew: &Arc<LeaderFollowers>) -> bool {
    CALL.with_borrow_mut(|call| match call {
        Call::None => false,
        Call::Begun => {
            *call = Call::Rang(crew.clone());
            true
        }
        Call::Rang(rung) => Arc::ptr_eq(rung, crew),
    })
}

/// Calls callbacks while the thread leads a connection.
pub(crate) fn lead_while(crew: &Arc<LeaderFollowers>, lead: LeaderToken, call_back: impl FnOnce()) {
    struct Led;
    impl Drop for Led {
        fn drop(&mut self) {
            LEADS.with_borrow_mut(Vec::pop);
        }
    }
    LEADS.with_borrow_mut(|leads| leads.push((crew.clone(), lead)));
    let _led = Led;
    call_back();
}

/// The thread is about to wait for others: it must not have what they need.
pub(crate) fn give_up_leads() {
    let leads = LEADS.with_borrow(Vec::clone);
    leads.into_iter().for_each(|(crew, lead)| crew.leave(lead));
}
