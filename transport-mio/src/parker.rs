//! A thread that waits for one answer, and the connection that it drives or follows meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use blobferry_platform::sync::Mutex;

/// A connection that the threads that wait for its answers drive, one at a time.
pub(crate) trait Driven: Send + Sync {
    /// Registers a thread that wants to wait, and returns what that thread has to do.
    fn join(&self, parker: &Arc<Parker>) -> Role;

    /// Removes a follower. Returns `false` if it was removed before because it was given leadership.
    fn unfollow(&self, number: u64) -> bool;

    /// Drives the connection until the parker's answer is there, or leadership or the connection is lost.
    fn lead_for(self: Arc<Self>, token: LeaderToken, parker: &Parker);

    /// Gives leadership up, if the token still stands for it.
    fn leave(&self, token: LeaderToken);

    /// Withdraws a thread that was about to wait. If an answer is still outstanding, the background thread
    /// leads.
    fn cancel_wait(&self);

    /// Wakes the leader if it sleeps.
    fn wake_leader(&self);

    /// Returns whether the connection has ended.
    fn has_ended(&self) -> bool;
}

/// The right to lead, identified by the number under which it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaderToken(u64);

impl LeaderToken {
    /// Makes the token of the `number`-th leadership of a connection.
    pub(crate) fn new(number: u64) -> LeaderToken {
        LeaderToken(number)
    }
}

/// What a thread that wants to wait has to do.
pub(crate) enum Role {
    /// It drives the connection.
    Leader(LeaderToken),
    /// It sleeps; the number identifies it.
    Follower(u64),
    /// The connection has ended, so there is nothing to drive.
    Disconnected,
}

/// The place at which one thread waits for one answer.
pub(crate) struct Parker {
    thread: Thread,
    done: AtomicBool,
    /// Leadership that was handed to the thread while it slept.
    handed: Mutex<Option<LeaderToken>>,
    /// The connection that the thread leads. A leader sleeps in `epoll`, so it is woken through this.
    leads: Mutex<Option<Arc<dyn Driven>>>,
}

impl Parker {
    /// Creates the parker of the current thread.
    pub(crate) fn new() -> Parker {
        let thread = thread::current();
        Parker { thread, done: AtomicBool::new(false), handed: Mutex::default(), leads: Mutex::default() }
    }

    /// Returns whether the answer is there, or will never be.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Ends the wait: the answer is there, or will never be.
    pub(crate) fn finish(&self) {
        self.done.store(true, Ordering::Release);
        match &*self.leads.lock() {
            Some(connection) => connection.wake_leader(),
            None => self.thread.unpark(),
        }
    }

    /// Hands leadership to a sleeping follower.
    pub(crate) fn hand(&self, token: LeaderToken) {
        *self.handed.lock() = Some(token);
        self.thread.unpark();
    }

    /// Wakes a sleeping follower to check why it sleeps.
    pub(crate) fn unpark(&self) {
        self.thread.unpark();
    }

    /// Waits until the answer is there, and drives the connection if no other thread does.
    ///
    /// A client's own thread (`owns_connections`) stops waiting when the connection ends: no other thread would
    /// make the next one.
    pub(crate) fn wait(self: &Arc<Self>, connection: Option<Arc<dyn Driven>>, owns_connections: bool) {
        let Some(connection) = connection else { return self.sleep(|| owns_connections) };
        if self.is_done() {
            return connection.cancel_wait();
        }
        while !self.is_done() {
            match connection.join(self) {
                Role::Leader(token) => self.drive(&connection, token),
                Role::Follower(number) => {
                    let ended = || owns_connections && connection.has_ended();
                    self.sleep(|| self.handed.lock().is_some() || ended());
                    if !connection.unfollow(number)
                        && let Some(token) = self.handed.lock().take()
                    {
                        self.drive(&connection, token);
                    }
                }
                Role::Disconnected => return self.sleep(|| owns_connections),
            }
        }
    }

    fn drive(&self, connection: &Arc<dyn Driven>, token: LeaderToken) {
        *self.leads.lock() = Some(connection.clone());
        connection.clone().lead_for(token, self);
        *self.leads.lock() = None;
    }

    fn sleep(&self, until: impl Fn() -> bool) {
        while !self.is_done() && !until() {
            thread::park();
        }
    }
}
