//! The loop: waits until something happens to any of its connections, and gives turns to those that have something to
//! do, round and round, so that none of them keeps the others waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blobferry_session::io::{CloseReason, ConnectionHandler};
use mio::event::Source;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::connection::{NextPoll, Socket};
use crate::loop_handle::{ConnectionWaker, LoopHandle};

const WAKER: Token = Token(0);
/// What is beside the connections: a server's listener.
const DOOR: Token = Token(1);
const FIRST: Token = Token(2);
/// Events that are fetched from the kernel at once.
const EVENTS: usize = 1024;

/// A loop with its connections.
pub(crate) struct EventLoop<E: ConnectionHandler> {
    poll: Poll,
    events: Events,
    remote: LoopHandle<E>,
    connections: BTreeMap<Token, Member<E>>,
    /// Who is to have a turn, each once.
    ready: VecDeque<Token>,
    /// When which connection's time comes. A connection whose deadline moves on is left where it is, looked at too
    /// early, and put where it belongs then: most deadlines move with every byte that arrives.
    timers: BTreeSet<(Instant, Token)>,
    /// It gets no more connections, and ends then at the latest.
    finish: Option<Instant>,
}

/// A connection, and how others ring for it.
struct Member<E> {
    connection: Box<Socket<E>>,
    bell: Arc<ConnectionWaker<E>>,
}

impl<E: ConnectionHandler> EventLoop<E> {
    /// A loop without connections.
    pub(crate) fn new() -> io::Result<EventLoop<E>> {
        let poll = Poll::new()?;
        let remote = LoopHandle::new(Waker::new(poll.registry(), WAKER)?, FIRST);
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(EVENTS),
            remote,
            connections: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            finish: None,
        })
    }

    /// The loop, as other threads see it.
    pub(crate) fn remote(&self) -> LoopHandle<E> {
        self.remote.clone()
    }

    /// Has a door watched.
    pub(crate) fn watch(&self, door: &mut impl Source) -> io::Result<()> {
        door.register(self.poll.registry(), DOOR, Interest::READABLE)
    }

    /// Turns until it is told to finish; how many connections it had to close then.
    ///
    /// `door` is called after every turn, with whether somebody knocked at it, and says when it wants to be called
    /// without that. When the loop is told to finish it is dropped, before any connection hears of that.
    pub(crate) fn run(mut self, door: impl FnMut(bool) -> Option<Instant>) -> usize {
        let (mut door, mut again) = (Some(door), None);
        while !self.is_over() {
            let knocked = match self.wait(again) {
                Ok(knocked) => knocked,
                Err(error) => {
                    tracing::error!(%error, "an event loop has failed");
                    break;
                }
            };
            // Before anybody is let go, who might come back.
            if self.finish.is_some() {
                door = None;
            }
            self.give_turns();
            again = door.as_mut().and_then(|door| door(knocked));
        }
        self.connections.len()
    }

    fn is_over(&self) -> bool {
        match self.finish {
            Some(moment) if moment <= Instant::now() => true,
            Some(_) => self.connections.is_empty(),
            None => false,
        }
    }

    /// Waits until there is something to do, `until` then at the latest; whether somebody knocked at the door.
    fn wait(&mut self, until: Option<Instant>) -> io::Result<bool> {
        let patience = match self.ready.is_empty() && self.remote.sleep() {
            true => self.patience(until),
            false => Some(Duration::ZERO),
        };
        match self.poll.poll(&mut self.events, patience) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            // Interrupted, it leaves no events.
            _ => {}
        }
        let mut knocked = false;
        for event in &self.events {
            match event.token() {
                WAKER => {}
                DOOR => knocked = true,
                token => {
                    if let Some(member) = self.connections.get_mut(&token) {
                        member.connection.ready(event);
                        queue(&mut self.ready, token, &mut member.connection);
                    }
                }
            }
        }
        self.take_messages();
        self.take_timers(Instant::now());
        Ok(knocked)
    }

    /// Both halves of a round; whether somebody knocked at the door.
    #[cfg(test)]
    pub(crate) fn turn(&mut self, until: Option<Instant>) -> io::Result<bool> {
        let knocked = self.wait(until)?;
        self.give_turns();
        Ok(knocked)
    }

    /// Gives everybody who has something to do one turn.
    fn give_turns(&mut self) {
        let mut then = NextPoll::Sleep;
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { break };
            then = then.max(self.give_turn(token));
        }
        if then == NextPoll::Look {
            thread::yield_now();
        }
    }

    /// How long to wait for events.
    fn patience(&self, until: Option<Instant>) -> Option<Duration> {
        let timer = self.timers.first().map(|(moment, _)| *moment);
        let first = [timer, until, self.finish].into_iter().flatten().min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Those who join, and those for whom it rang.
    fn take_messages(&mut self) {
        let messages = self.remote.take();
        self.finish = messages.finish;
        for (bell, mut connection) in messages.joining {
            let token = bell.token();
            match connection.register(self.poll.registry(), token) {
                Ok(()) => {
                    queue(&mut self.ready, token, &mut connection);
                    self.connections.insert(token, Member { connection, bell });
                }
                Err(error) => {
                    self.remote.left();
                    connection.end(&CloseReason::Stream(error));
                }
            }
        }
        for bell in messages.rung {
            if let Some(member) = self.connections.get_mut(&bell.token()) {
                queue(&mut self.ready, bell.token(), &mut member.connection);
            }
        }
    }

    fn take_timers(&mut self, now: Instant) {
        while let Some((_, token)) = self.timers.first().copied().filter(|(moment, _)| *moment <= now) {
            self.timers.pop_first();
            if let Some(Member { connection, .. }) = self.connections.get_mut(&token) {
                connection.timer = None;
                connection.due = connection.deadline().is_some_and(|deadline| deadline <= now);
                queue(&mut self.ready, token, connection);
            }
        }
    }

    fn give_turn(&mut self, token: Token) -> NextPoll {
        let Some(Member { connection, bell }) = self.connections.get_mut(&token) else {
            return NextPoll::Sleep;
        };
        connection.queued = false;
        match connection.turn(|| bell.answer()) {
            Ok(then) => {
                if then > NextPoll::Sleep {
                    queue(&mut self.ready, token, connection);
                }
                let deadline = connection.deadline();
                if let Some(deadline) = deadline.filter(|new| connection.timer.is_none_or(|old| *new < old)) {
                    if let Some(old) = connection.timer.replace(deadline) {
                        self.timers.remove(&(old, token));
                    }
                    self.timers.insert((deadline, token));
                }
                then
            }
            Err(how) => {
                self.end(token, &how);
                NextPoll::Sleep
            }
        }
    }

    fn end(&mut self, token: Token, how: &CloseReason) {
        let Some(Member { connection, .. }) = self.connections.remove(&token) else { return };
        if let Some(timer) = connection.timer {
            self.timers.remove(&(timer, token));
        }
        self.remote.left();
        connection.end(how);
    }
}

/// Puts a connection on the list of those that are to have a turn.
fn queue<E>(ready: &mut VecDeque<Token>, token: Token, connection: &mut Socket<E>) {
    if !std::mem::replace(&mut connection.queued, true) {
        ready.push_back(token);
    }
}

impl<E: ConnectionHandler> Drop for EventLoop<E> {
    fn drop(&mut self) {
        while let Some((token, _)) = self.connections.first_key_value() {
            self.end(*token, &CloseReason::Stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{self, Receiver, Sender};

    use blobferry_protocol::{PeerError, RequestError, Time, TransferId};
    use blobferry_session::io::{ConnectionIo, FileSlice};
    use bytes::Bytes;

    use super::*;
    use crate::loop_handle::ConnectionWaker;

    /// Answers questions, and tells what happens to it.
    struct Listener {
        wants: Arc<AtomicBool>,
        timeout: Option<Time>,
        answer: Vec<u8>,
        bell: Arc<ConnectionWaker<Listener>>,
        tell: Sender<String>,
    }

    impl ConnectionHandler for Listener {
        fn transmit(&mut self, _: Time, out: &mut Vec<u8>, _: usize, _: bool) -> Option<FileSlice> {
            out.append(&mut self.answer);
            None
        }
        fn body_failed(&mut self, _: TransferId, _: RequestError) {}
        fn receive(&mut self, _: Time, bytes: Bytes) -> Result<(), PeerError> {
            assert_ne!(&bytes[..], b"panic", "on purpose");
            if bytes.contains(&b'?') {
                self.answer.push(b'!');
                self.bell.ring();
            }
            self.tell.send(bytes.len().to_string()).unwrap();
            Ok(())
        }
        fn wants_input(&self) -> bool {
            self.wants.load(Ordering::SeqCst)
        }
        fn payload_due(&self) -> u64 {
            0
        }
        fn poll_timeout(&self) -> Option<Time> {
            self.timeout
        }
        fn handle_timeout(&mut self, _: Time) -> Result<(), PeerError> {
            self.timeout = None;
            self.tell.send("timeout".into()).unwrap();
            Ok(())
        }
        fn catch_up(&mut self) {}
        fn error(&self) -> Option<PeerError> {
            None
        }
        fn is_finished(&self) -> bool {
            false
        }
    }

    /// A connection's other end.
    struct Peer {
        stream: TcpStream,
        bell: Arc<ConnectionWaker<Listener>>,
        wants: Arc<AtomicBool>,
        told: Receiver<String>,
    }

    fn join(events: &mut EventLoop<Listener>, timeout: Option<Time>) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let other = listener.accept().unwrap().0;
        other.set_nonblocking(true).unwrap();
        let other = mio::net::TcpStream::from_std(other);
        let (tell, told) = mpsc::channel();
        let wants = Arc::new(AtomicBool::new(true));
        let bell = events.remote.bell();
        let (answer, told_by) = (Vec::new(), tell.clone());
        let endpoint = Listener { wants: wants.clone(), timeout, answer, bell: bell.clone(), tell: told_by };
        let carrier = ConnectionIo::begin(&other, |_| endpoint).unwrap();
        let ended = Box::new(move |ended: &_| drop(tell.send(format!("{ended}"))));
        events.remote.join(bell.clone(), Socket::new(other, carrier, ended));
        turn(events);
        Peer { stream, bell, wants, told }
    }

    /// One turn, that does not wait.
    fn turn(events: &mut EventLoop<Listener>) {
        events.turn(Some(Instant::now())).unwrap();
    }

    #[test]
    fn what_arrives_while_nobody_wants_it_is_read_as_soon_as_somebody_does() {
        let mut events = EventLoop::new().unwrap();
        let mut peer = join(&mut events, None);
        peer.wants.store(false, Ordering::SeqCst);
        peer.stream.write_all(b"hello").unwrap();
        (0..3).for_each(|_| turn(&mut events));
        assert!(peer.told.try_recv().is_err());
        // The kernel does not tell again.
        peer.wants.store(true, Ordering::SeqCst);
        peer.bell.ring();
        turn(&mut events);
        assert_eq!(peer.told.try_recv().unwrap(), "5");
    }

    #[test]
    fn an_answer_that_is_there_at_once_leaves_in_the_same_turn_and_wakes_nobody() {
        let mut events = EventLoop::new().unwrap();
        let mut peer = join(&mut events, None);
        for _ in 0..10 {
            peer.stream.write_all(b"?").unwrap();
            while peer.told.try_recv().is_err() {
                events.turn(None).unwrap();
            }
            let mut answer = [0; 2];
            assert_eq!(peer.stream.read(&mut answer).unwrap(), 1);
            assert!(events.ready.is_empty() && events.remote.sleep(), "there is nothing left to do");
        }
        let mut fetched = Events::with_capacity(8);
        events.poll.poll(&mut fetched, Some(Duration::ZERO)).unwrap();
        assert!(fetched.iter().all(|event| event.token() != WAKER));
    }

    #[test]
    fn who_has_much_to_say_has_one_turn_like_everybody_and_is_heard_to_the_end() {
        let mut events = EventLoop::new().unwrap();
        let (mut loud, mut quiet) = (join(&mut events, None), join(&mut events, None));
        loud.stream.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(n) = loud.stream.write(&[0; 64 << 10]) {
            written += n;
        }
        quiet.stream.write_all(b"!").unwrap();
        turn(&mut events);
        assert_eq!(quiet.told.try_recv().unwrap(), "1");
        let first: Vec<String> = loud.told.try_iter().collect();
        assert!(first.len() <= 4, "{first:?}");
        let heard = |told: &str| told.parse::<usize>().unwrap();
        let mut read: usize = first.iter().map(|told| heard(told)).sum();
        while read < written {
            turn(&mut events);
            read += loud.told.try_iter().map(|told| heard(&told)).sum::<usize>();
        }
    }

    #[test]
    fn a_connection_whose_handling_panics_ends_alone() {
        let mut events = EventLoop::new().unwrap();
        let (mut bad, mut good) = (join(&mut events, None), join(&mut events, None));
        bad.stream.write_all(b"panic").unwrap();
        good.stream.write_all(b"hello").unwrap();
        turn(&mut events);
        assert!(bad.told.try_recv().unwrap().contains("panicked"));
        assert_eq!(good.told.try_recv().unwrap(), "5");
        assert_eq!((events.connections.len(), events.remote.load()), (1, 1));
        // Its bell rings for nobody.
        bad.bell.ring();
        turn(&mut events);
    }

    #[test]
    fn a_deadline_passes_while_nothing_happens() {
        let mut events = EventLoop::new().unwrap();
        let peer = join(&mut events, Some(Time(Duration::from_millis(5))));
        let mut told = peer.told.try_recv();
        while told.is_err() {
            events.turn(None).unwrap();
            told = peer.told.try_recv();
        }
        assert_eq!(told.unwrap(), "timeout");
        assert!(events.timers.is_empty());
    }

    #[test]
    fn a_loop_that_finishes_ends_with_its_last_connection_and_takes_no_other() {
        let mut events = EventLoop::new().unwrap();
        let peer = join(&mut events, None);
        events.remote.finish(Instant::now() + Duration::from_secs(3600));
        turn(&mut events);
        assert!(!events.is_over());
        let late = join(&mut events, None);
        assert_eq!(events.connections.len(), 1);
        drop((late, peer.stream));
        assert_eq!(events.run(|_| unreachable!("the door is shut")), 0);
        assert!(peer.told.try_recv().unwrap().contains("closed"));
    }
}
