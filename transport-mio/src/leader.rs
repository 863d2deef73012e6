//! Who drives a client's connection: the threads that wait for its answers, in turns, so that an answer wakes nobody but
//! who waits for it, and not even that one where it waits alone.
//!
//! One thread at a time *leads*: it waits for events, receives, and sends. The others follow: they sleep until their
//! answer is there, or the lead is handed to them. The rules:
//!
//! * Who waits takes the lead if nobody has it, and follows else. Who leaves with its answer hands the lead to the
//!   follower that came last: most likely that one waits longest.
//! * While nobody waits the client's own thread leads: timers, pings and news go on. It lets go as soon as anybody has
//!   followed it, and looks from time to time whether callers still come and go; when none has led since it looked last,
//!   it leads again and sleeps until something happens. So it is not woken for each of them. Whoever sees that an answer
//!   is outstanding for which nobody waits wakes it at once.
//! * Who has something to send rings. A leader that is awake looks before it sleeps, and sends what many have rung for at
//!   once; if it sleeps, or there is none, who rang sends it on its own thread.
//! * Who leads because it waits for an answer that will soon be there [looks](crate::spin) for it for a moment before it
//!   sleeps, and so does whoever leads while a large blob is moved.
//! * Only the own thread ends a connection: who finds out that it has ended leaves that here and wakes it.
//! * Callbacks are called when nothing is locked, by the leader, which keeps the lead meanwhile: what they ask for is sent
//!   together. One that waits for an answer itself, or for the end of a client, gives up all leads of its thread first, so
//!   that nobody waits who has to drive what others wait for. See [`here`](crate::thread_context).
//!
//! Locks are taken in the order `poll`, `connection`, `state`, and none is held while something is called that may wait.

use blobferry_platform::sync::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blobferry_session::client::{Handler, Session};
use blobferry_session::io::CloseReason;
use mio::net::TcpStream;
use mio::{Events, Poll, Token, Waker};

use crate::connection::{NextPoll, Socket};
use crate::parker::Parker;
use crate::spin;
use crate::thread_context;

const WAKER: Token = Token(0);
const SOCKET: Token = Token(1);
/// How long callers must have stayed away before the client's own thread leads again.
const QUIET: Duration = Duration::from_millis(4);

/// One connection of a client, and those who drive it.
pub(crate) struct LeaderFollowers {
    session: Session,
    /// The leader's.
    poll: Mutex<Poller>,
    waker: Waker,
    /// `None` when it has ended.
    connection: Mutex<Option<Socket<Handler>>>,
    state: Mutex<State>,
    /// The own thread is wanted.
    wanted: Condvar,
}

/// How a leader waits for events.
type Wait = fn(&mut Poll, &mut Events, Option<Duration>) -> io::Result<()>;

struct Poller {
    poll: Poll,
    events: Events,
}

#[derive(Default)]
struct State {
    /// Who leads.
    leader: Option<LeaderToken>,
    /// How often the lead was taken.
    leads: u64,
    /// The leader waits for events, and was not roused.
    asleep: bool,
    /// There is something to send that nobody has looked at.
    rung: bool,
    /// What the connection wanted when its last turn was over.
    then: NextPoll,
    /// When the connection wants a turn whatever happens, or an earlier moment.
    deadline: Option<Instant>,
    /// Those who wait, by their numbers.
    followers: BTreeMap<u64, Arc<Parker>>,
    /// How many have followed so far.
    followed: u64,
    /// The own thread is to lead as soon as nobody does.
    wanted: bool,
    /// The own thread sleeps until it is wanted.
    off: bool,
    /// How the connection has ended, until the own thread takes notice.
    ended: Option<CloseReason>,
    over: bool,
}

/// The right to lead, by the number under which it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaderToken(u64);

/// What becomes of who wants to wait.
pub(crate) enum Role {
    Leader(LeaderToken),
    /// With a number.
    Follower(u64),
    /// There is nothing to drive any more.
    Disconnected,
}

impl std::fmt::Debug for LeaderFollowers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        write!(f, "Crew(leader {:?}, {} followers)", state.leader, state.followers.len())
    }
}

impl LeaderFollowers {
    /// Begins a session's conversation on a stream. Nothing happens before the own thread [stands by](Self::run_background).
    pub(crate) fn new(session: Session, stream: TcpStream) -> io::Result<Arc<LeaderFollowers>> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let poll = Mutex::new(Poller { poll, events: Events::with_capacity(8) });
        let state = Mutex::new(State { rung: true, wanted: true, ..State::default() });
        let (connection, wanted) = (Mutex::default(), Condvar::new());
        let crew = Arc::new(LeaderFollowers { session, poll, waker, connection, state, wanted });
        let ring = Arc::downgrade(&crew);
        let wake = move || ring.upgrade().iter().for_each(LeaderFollowers::ring);
        crew.session.defer_callbacks();
        let carrier = crew.session.connect(&stream, wake)?;
        let session = crew.session.clone();
        let mut connection = Socket::new(stream, carrier, Box::new(move |ended| session.lost(ended)));
        connection.register(crew.poll.lock().poll.registry(), SOCKET)?;
        *crew.connection.lock() = Some(connection);
        Ok(crew)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// There is something to send.
    pub(crate) fn ring(self: &Arc<Self>) {
        let waits = thread_context::rang(self);
        let mut state = self.state();
        state.rung = true;
        if state.leader.is_some() && !state.asleep {
            return;
        }
        drop(state);
        self.transmit();
        if !waits {
            let mut state = self.state();
            if state.leader.is_none() {
                self.want(&mut state);
            }
        }
    }

    /// Has the own thread lead as soon as nobody else does.
    fn want(&self, state: &mut State) {
        state.wanted = true;
        self.wanted.notify_all();
    }

    /// Wakes the leader where it sleeps.
    fn wake_leader(&self, state: &mut State) {
        if std::mem::take(&mut state.asleep)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a client can not be woken");
        }
    }

    /// The leader's answer is there.
    pub(crate) fn rouse_leader(&self) {
        self.wake_leader(&mut self.state());
    }

    /// Sends what was rung for. Where somebody else is at the connection, that one does it: it looks again when it has
    /// let go.
    fn transmit(&self) {
        loop {
            let Some(mut connection) = self.connection.try_lock() else { return };
            let Some(open) = connection.as_mut() else { return };
            self.state().rung = false;
            let sent = open.transmit();
            self.note(open, sent);
            drop(connection);
            self.call_back();
            if !self.state().rung {
                return;
            }
        }
    }

    /// Notes what has become of a connection, while it is locked. The kernel does not tell again what is left to do.
    fn note(&self, connection: &Socket<Handler>, done: Result<NextPoll, CloseReason>) {
        let deadline = connection.deadline();
        let mut state = self.state();
        let sooner = deadline.is_some_and(|new| state.deadline.is_none_or(|old| new < old));
        state.deadline = deadline;
        state.then = *done.as_ref().unwrap_or(&NextPoll::Sleep);
        if let Err(ended) = done {
            self.give_up(&mut state, ended);
        } else if sooner || state.then == NextPoll::Work {
            self.wake_leader(&mut state);
        }
    }

    /// The connection has ended: the own thread is to take notice.
    fn give_up(&self, state: &mut State, how: CloseReason) {
        state.ended.get_or_insert(how);
        self.want(state);
        self.wake_leader(state);
        // It may be one of them.
        state.followers.values().for_each(|seat| seat.nudge());
    }

    /// Whether the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let state = self.state();
        state.over || state.ended.is_some()
    }

    /// Calls the callbacks that wait.
    fn call_back(&self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.session.call_back())) {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => tracing::error!("a callback panicked"),
            }
        }
    }

    /// Somebody wants to wait.
    pub(crate) fn join(&self, seat: &Arc<Parker>) -> Role {
        let mut state = self.state();
        if state.over || state.ended.is_some() {
            Role::Disconnected
        } else if state.leader.is_none() {
            Role::Leader(state.take_lead())
        } else {
            state.followed += 1;
            let number = state.followed;
            state.followers.insert(number, seat.clone());
            Role::Follower(number)
        }
    }

    /// A follower stops following; `false` where it does so because it was given the lead.
    pub(crate) fn unfollow(&self, number: u64) -> bool {
        self.state().followers.remove(&number).is_some()
    }

    /// Drives the connection until the seat's answer is there, or the lead or the connection is lost.
    pub(crate) fn lead_for(self: &Arc<Self>, lead: LeaderToken, seat: &Parker) {
        self.lead(lead, true, |_| seat.is_done());
    }

    fn lead(self: &Arc<Self>, lead: LeaderToken, looks: bool, enough: impl Fn(&State) -> bool) {
        let _leading = Leading { crew: self, lead };
        loop {
            let mut state = self.state();
            if state.leader != Some(lead) || state.ended.is_some() || enough(&state) {
                return;
            }
            state.asleep = !state.rung && state.then == NextPoll::Sleep;
            let patience = match state.asleep {
                true => state.deadline.map(|moment| moment.saturating_duration_since(Instant::now())),
                false => Some(Duration::ZERO),
            };
            let looked = state.then == NextPoll::Look && !state.rung;
            drop(state);
            if looked {
                thread::yield_now();
            }
            let wait = if looks && self.session.expects_small_answer() { spin::wait } else { Poll::poll };
            self.turn(patience, wait);
            thread_context::lead_while(self, lead, || self.call_back());
        }
    }

    /// Waits for events, and lets the connection have a turn.
    fn turn(&self, patience: Option<Duration>, wait: Wait) {
        let mut poller = self.poll.lock();
        let Poller { poll, events } = &mut *poller;
        let polled = wait(poll, events, patience);
        let mut state = self.state();
        state.asleep = false;
        let late = state.deadline;
        drop(state);
        let mut connection = self.connection.lock();
        let Some(open) = connection.as_mut() else { return };
        for event in events.iter().filter(|event| event.token() == SOCKET) {
            open.ready(event);
        }
        // Most deadlines move with every byte that arrives.
        let now = Instant::now();
        open.due = late.is_some_and(|moment| moment <= now)
            && open.deadline().is_some_and(|deadline| deadline <= now);
        let turned = match polled {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error.into()),
            // Interrupted, it leaves no events.
            _ => open.turn(|| self.state().rung = false),
        };
        self.note(open, turned);
    }

    /// Gives up a lead, where it still is one.
    pub(crate) fn leave(&self, lead: LeaderToken) {
        let owes = self.session.awaits_answers();
        let mut state = self.state();
        if state.leader != Some(lead) {
            return;
        }
        state.leader = None;
        let next = match state.ended {
            None => state.followers.pop_last(),
            Some(_) => None,
        };
        let rung = state.rung;
        if let Some((_, seat)) = next {
            seat.give(state.take_lead());
        } else if owes || rung || state.then == NextPoll::Work || state.wanted || state.ended.is_some() {
            self.want(&mut state);
        } else if state.off {
            self.wanted.notify_all();
        }
        drop(state);
        // While it was awake, it was the one to look.
        if rung {
            self.transmit();
        }
    }

    /// Somebody who was about to wait needs not: if an answer is outstanding all the same, somebody else must see to it.
    pub(crate) fn need_not(&self) {
        let owes = self.session.awaits_answers();
        let mut state = self.state();
        if (owes || state.then == NextPoll::Work) && state.leader.is_none() {
            self.want(&mut state);
        }
    }

    /// What the own thread does: leads while nobody waits, until the connection has ended.
    pub(crate) fn run_background(self: &Arc<Self>) -> CloseReason {
        loop {
            match self.take_over() {
                Ok((lead, followed)) => self.lead(lead, false, |state| state.followed != followed),
                Err(ended) => return ended,
            }
        }
    }

    /// Waits until the own thread has to lead; how many had followed then.
    fn take_over(&self) -> Result<(LeaderToken, u64), CloseReason> {
        let mut seen = None;
        let mut state = self.state();
        loop {
            if state.leader.is_none() {
                if let Some(ended) = state.ended.take() {
                    state.over = true;
                    return Err(ended);
                }
                if std::mem::take(&mut state.wanted) || seen == Some(state.leads) {
                    return Ok((state.take_lead(), state.followed));
                }
            }
            if state.leader.is_some() && seen == Some(state.leads) {
                // Somebody waits long.
                state.off = true;
                state = self.wanted.wait(state);
                (state.off, seen) = (false, None);
            } else {
                seen = Some(state.leads);
                (state, _) = self.wanted.wait_timeout(state, QUIET);
            }
        }
    }

    /// Whatever is under way: it is over.
    pub(crate) fn cut(&self) {
        self.give_up(&mut self.state(), CloseReason::Stopped);
    }

    /// Has the own thread lead, soon: the end comes.
    pub(crate) fn finish(&self) {
        let mut state = self.state();
        self.want(&mut state);
    }

    /// Closes the socket, and tells how the connection has ended.
    pub(crate) fn end(&self, how: &CloseReason) {
        let connection = self.connection.lock().take();
        if let Some(connection) = connection {
            connection.end(how);
        }
        self.call_back();
    }
}

impl State {
    fn take_lead(&mut self) -> LeaderToken {
        self.leads += 1;
        let lead = LeaderToken(self.leads);
        self.leader = Some(lead);
        lead
    }
}

/// Somebody leads. However that ends, somebody else does then.
struct Leading<'a> {
    crew: &'a LeaderFollowers,
    lead: LeaderToken,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.crew.leave(self.lead);
    }
}
