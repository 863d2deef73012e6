//! Leader/followers: the threads that wait for a client's answers drive its connection, one at a time.
//!
//! An answer then wakes no thread but the one that waits for it, and not even that one if it waits alone.
//!
//! The *leader* waits for events, receives, and sends. The *followers* sleep until their answer is there, or until
//! leadership is handed to them. The rules:
//!
//! * A thread that is about to wait becomes the leader if there is none; otherwise it follows. A leader that has its
//!   answer hands leadership to the newest follower, which is likely to wait longest.
//! * While no caller waits, the client's background thread leads: timers, pings and notifications go on. It gives
//!   leadership up as soon as a caller follows it. Then it checks every [`IDLE_BEFORE_BACKGROUND`] whether any caller
//!   has led since the last check; if none has, it leads again. So callers that come and go do not wake it each time.
//!   A thread that finds an outstanding answer for which no thread waits wakes it at once.
//! * A thread that has something to send wakes the leader. A leader that is awake checks for it before it sleeps, and
//!   sends the requests of many threads together. If the leader sleeps, or there is none, the thread sends by itself.
//! * A leader that waits for an answer that will soon be there [spins](crate::spin) before it sleeps. So does any leader
//!   while a large blob is moved.
//! * **Only the background thread ends a connection.** A thread that finds it ended notes that in the state, and wakes
//!   the background thread.
//! * **Callbacks run with nothing locked.** The leader runs them, and keeps leadership meanwhile, so that their requests
//!   are sent together. A callback that waits for an answer, or for the end of a client, gives up all leaderships of its
//!   thread first: see [`thread_context`].
//!
//! Locks are taken in the order `poll`, `socket`, `state`. None is held during a call that may wait.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blobferry_platform::sync::{Condvar, Mutex, MutexGuard};
use blobferry_session::client::{Handler, Session};
use blobferry_session::io::CloseReason;
use mio::net::TcpStream;
use mio::{Events, Poll, Token, Waker};

use crate::parker::{Driven, LeaderToken, Parker, Role};
use crate::socket::{NextPoll, Socket};
use crate::spin;
use crate::thread_context;

const WAKER: Token = Token(0);
const SOCKET: Token = Token(1);
/// How long no caller must have led before the background thread leads again.
const IDLE_BEFORE_BACKGROUND: Duration = Duration::from_millis(4);

/// One connection of a client, and the threads that drive it.
pub(crate) struct LeaderFollowers {
    session: Session,
    /// Used by the leader alone.
    poll: Mutex<Poller>,
    waker: Waker,
    /// `None` after the connection has ended.
    connection: Mutex<Option<Socket<Handler>>>,
    state: Mutex<State>,
    /// Notified when the background thread has to lead.
    background: Condvar,
}

/// How a leader waits for events.
type Wait = fn(&mut Poll, &mut Events, Option<Duration>) -> io::Result<()>;

struct Poller {
    poll: Poll,
    events: Events,
}

#[derive(Default)]
struct State {
    leader: Option<LeaderToken>,
    /// How many leaderships were given so far.
    leads: u64,
    /// The leader waits for events, and was not woken.
    asleep: bool,
    /// A thread has something to send, and no thread has sent it.
    wake_pending: bool,
    /// What the connection wanted when its last turn was over.
    next_poll: NextPoll,
    /// When the connection wants a turn in any case, or an earlier moment.
    deadline: Option<Instant>,
    /// The waiting threads, by their numbers.
    followers: BTreeMap<u64, Arc<Parker>>,
    /// How many threads have followed so far.
    followed: u64,
    /// The background thread has to lead as soon as no other thread does.
    background_requested: bool,
    /// The background thread sleeps without a timeout.
    background_asleep: bool,
    /// How the connection has ended, until the background thread takes this.
    ended: Option<CloseReason>,
    /// The background thread has taken the end.
    is_over: bool,
}

impl std::fmt::Debug for LeaderFollowers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        write!(f, "LeaderFollowers(leader {:?}, {} followers)", state.leader, state.followers.len())
    }
}

impl LeaderFollowers {
    /// Begins a connection of a session on a stream. Nothing is driven before
    /// [`run_background`](Self::run_background) is called.
    pub(crate) fn new(session: Session, stream: TcpStream) -> io::Result<Arc<LeaderFollowers>> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let poll = Mutex::new(Poller { poll, events: Events::with_capacity(8) });
        let state = Mutex::new(State { wake_pending: true, background_requested: true, ..State::default() });
        let (connection, background) = (Mutex::default(), Condvar::new());
        let this = Arc::new(LeaderFollowers { session, poll, waker, connection, state, background });
        let woken = Arc::downgrade(&this);
        let wake = move || woken.upgrade().iter().for_each(LeaderFollowers::wake);
        this.session.defer_callbacks();
        let io = this.session.connect(&stream, wake)?;
        let session = this.session.clone();
        let mut connection = Socket::new(stream, io, Box::new(move |reason| session.lost(reason)));
        connection.register(this.poll.lock().poll.registry(), SOCKET)?;
        *this.connection.lock() = Some(connection);
        Ok(this)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Has something sent: by the leader if it is awake, otherwise by this thread.
    fn wake(self: &Arc<Self>) {
        let waits = thread_context::note_wake(self.clone());
        let mut state = self.state();
        state.wake_pending = true;
        if state.leader.is_some() && !state.asleep {
            return;
        }
        drop(state);
        self.transmit();
        if !waits {
            let mut state = self.state();
            if state.leader.is_none() {
                self.request_background(&mut state);
            }
        }
    }

    /// Makes the background thread lead as soon as no other thread does.
    fn request_background(&self, state: &mut State) {
        state.background_requested = true;
        self.background.notify_all();
    }

    fn wake_sleeping_leader(&self, state: &mut State) {
        if std::mem::take(&mut state.asleep)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "cannot wake a client's thread");
        }
    }

    /// Sends what is pending. If another thread has the connection locked, that thread does it after it unlocks.
    fn transmit(&self) {
        loop {
            let Some(mut connection) = self.connection.try_lock() else { return };
            let Some(open) = connection.as_mut() else { return };
            self.state().wake_pending = false;
            let sent = open.transmit();
            self.note(open, sent);
            drop(connection);
            self.call_back();
            if !self.state().wake_pending {
                return;
            }
        }
    }

    /// Notes the result of a turn, while the connection is locked. The kernel does not report the rest of the work again.
    fn note(&self, connection: &Socket<Handler>, turned: Result<NextPoll, CloseReason>) {
        let deadline = connection.deadline();
        let mut state = self.state();
        let sooner = deadline.is_some_and(|new| state.deadline.is_none_or(|old| new < old));
        state.deadline = deadline;
        state.next_poll = *turned.as_ref().unwrap_or(&NextPoll::Wait);
        if let Err(reason) = turned {
            self.note_end(&mut state, reason);
        } else if sooner || state.next_poll == NextPoll::Again {
            self.wake_sleeping_leader(&mut state);
        }
    }

    /// Notes the end of the connection, and wakes the background thread.
    fn note_end(&self, state: &mut State, reason: CloseReason) {
        state.ended.get_or_insert(reason);
        self.request_background(state);
        self.wake_sleeping_leader(state);
        // The background thread may be one of the followers.
        state.followers.values().for_each(|parker| parker.unpark());
    }

    /// Runs the callbacks that are pending.
    fn call_back(&self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.session.call_back())) {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => tracing::error!("a callback panicked"),
            }
        }
    }

    fn lead(self: &Arc<Self>, token: LeaderToken, may_spin: bool, is_done: impl Fn(&State) -> bool) {
        let _leading = Leading { connection: self, token };
        loop {
            let mut state = self.state();
            if state.leader != Some(token) || state.ended.is_some() || is_done(&state) {
                return;
            }
            state.asleep = !state.wake_pending && state.next_poll == NextPoll::Wait;
            let timeout = match state.asleep {
                true => state.deadline.map(|moment| moment.saturating_duration_since(Instant::now())),
                false => Some(Duration::ZERO),
            };
            let spins_for_more = state.next_poll == NextPoll::Spin && !state.wake_pending;
            drop(state);
            if spins_for_more {
                thread::yield_now();
            }
            let spins_for_answer = may_spin && self.session.expects_small_answer();
            self.turn(timeout, if spins_for_answer { spin::wait } else { Poll::poll });
            thread_context::lead_while(self.clone(), token, || self.call_back());
        }
    }

    /// Waits for events, and gives the connection a turn.
    fn turn(&self, timeout: Option<Duration>, wait: Wait) {
        let mut poller = self.poll.lock();
        let Poller { poll, events } = &mut *poller;
        let polled = wait(poll, events, timeout);
        let mut state = self.state();
        state.asleep = false;
        let noted_deadline = state.deadline;
        drop(state);
        let mut connection = self.connection.lock();
        let Some(open) = connection.as_mut() else { return };
        for event in events.iter().filter(|event| event.token() == SOCKET) {
            open.ready(event);
        }
        // Most deadlines move with every byte that arrives, so the noted one may be too early.
        let now = Instant::now();
        open.due = noted_deadline.is_some_and(|moment| moment <= now)
            && open.deadline().is_some_and(|deadline| deadline <= now);
        let turned = match polled {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error.into()),
            // An interrupted poll leaves no events.
            _ => open.turn(|| self.state().wake_pending = false),
        };
        self.note(open, turned);
    }

    /// Leads while no caller waits, until the connection has ended. The background thread runs this.
    pub(crate) fn run_background(self: &Arc<Self>) -> CloseReason {
        loop {
            match self.await_leadership() {
                Ok((token, followed)) => self.lead(token, false, |state| state.followed != followed),
                Err(reason) => return reason,
            }
        }
    }

    /// Waits until the background thread has to lead. Returns also how many threads had followed by then.
    fn await_leadership(&self) -> Result<(LeaderToken, u64), CloseReason> {
        let mut seen = None;
        let mut state = self.state();
        loop {
            if state.leader.is_none() {
                if let Some(reason) = state.ended.take() {
                    state.is_over = true;
                    return Err(reason);
                }
                if std::mem::take(&mut state.background_requested) || seen == Some(state.leads) {
                    return Ok((state.give_leadership(), state.followed));
                }
            }
            if state.leader.is_some() && seen == Some(state.leads) {
                // One leader waits longer than `IDLE_BEFORE_BACKGROUND`.
                state.background_asleep = true;
                state = self.background.wait(state);
                (state.background_asleep, seen) = (false, None);
            } else {
                seen = Some(state.leads);
                (state, _) = self.background.wait_timeout(state, IDLE_BEFORE_BACKGROUND);
            }
        }
    }

    /// Ends the connection at once, with everything under way.
    pub(crate) fn abort(&self) {
        self.note_end(&mut self.state(), CloseReason::Stopped);
    }

    /// Makes the background thread lead soon, because the connection is about to end.
    pub(crate) fn request_background_leader(&self) {
        self.request_background(&mut self.state());
    }

    /// Closes the socket, and reports to the session how the connection has ended.
    pub(crate) fn end(&self, reason: &CloseReason) {
        let connection = self.connection.lock().take();
        if let Some(connection) = connection {
            connection.end(reason);
        }
        self.call_back();
    }
}

impl Driven for LeaderFollowers {
    fn join(&self, parker: &Arc<Parker>) -> Role {
        let mut state = self.state();
        if state.is_over || state.ended.is_some() {
            Role::Disconnected
        } else if state.leader.is_none() {
            Role::Leader(state.give_leadership())
        } else {
            state.followed += 1;
            let number = state.followed;
            state.followers.insert(number, parker.clone());
            Role::Follower(number)
        }
    }

    fn unfollow(&self, number: u64) -> bool {
        self.state().followers.remove(&number).is_some()
    }

    fn lead_for(self: Arc<Self>, token: LeaderToken, parker: &Parker) {
        self.lead(token, true, |_| parker.is_done());
    }

    fn leave(&self, token: LeaderToken) {
        let awaits_answers = self.session.awaits_answers();
        let mut state = self.state();
        if state.leader != Some(token) {
            return;
        }
        state.leader = None;
        let next = match state.ended {
            None => state.followers.pop_last(),
            Some(_) => None,
        };
        let wake_pending = state.wake_pending;
        let has_work = awaits_answers || wake_pending || state.next_poll == NextPoll::Again;
        if let Some((_, parker)) = next {
            parker.hand(state.give_leadership());
        } else if has_work || state.background_requested || state.ended.is_some() {
            self.request_background(&mut state);
        } else if state.background_asleep {
            self.background.notify_all();
        }
        drop(state);
        // Other threads relied on this leader to send, because it was awake.
        if wake_pending {
            self.transmit();
        }
    }

    fn cancel_wait(&self) {
        let awaits_answers = self.session.awaits_answers();
        let mut state = self.state();
        if (awaits_answers || state.next_poll == NextPoll::Again) && state.leader.is_none() {
            self.request_background(&mut state);
        }
    }

    fn wake_leader(&self) {
        self.wake_sleeping_leader(&mut self.state());
    }

    fn has_ended(&self) -> bool {
        let state = self.state();
        state.is_over || state.ended.is_some()
    }
}

impl State {
    fn give_leadership(&mut self) -> LeaderToken {
        self.leads += 1;
        let token = LeaderToken::new(self.leads);
        self.leader = Some(token);
        token
    }
}

/// A leadership in use. Its end, also by a panic, hands leadership on.
struct Leading<'a> {
    connection: &'a LeaderFollowers,
    token: LeaderToken,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.connection.leave(self.token);
    }
}
