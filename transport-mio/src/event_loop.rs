//! The event loop of a server: waits for events of its connections, and gives a turn to each that has something to do.
//!
//! Turns go round, and each is limited, so no connection keeps the others waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blobferry_session::io::{CloseReason, ConnectionHandler};
use mio::event::Source;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::loop_handle::{ConnectionWaker, LoopHandle};
use crate::socket::{NextPoll, Socket};

const WAKER: Token = Token(0);
/// The server's listener, in the loop that has it.
const LISTENER: Token = Token(1);
const FIRST: Token = Token(2);
/// Events that one call fetches from the kernel, at most.
const EVENTS: usize = 1024;

/// An event loop with its connections.
pub(crate) struct EventLoop<E: ConnectionHandler> {
    poll: Poll,
    events: Events,
    handle: LoopHandle<E>,
    connections: BTreeMap<Token, Member<E>>,
    /// The connections that get a turn, each once.
    ready: VecDeque<Token>,
    /// The timers of the connections. Most deadlines move later with every byte that arrives. Then the timer stays as it
    /// is, fires too early, and is set anew.
    timers: BTreeSet<(Instant, Token)>,
    /// The loop gets no more connections, and ends at this moment at the latest.
    finish: Option<Instant>,
}

/// A connection, and its waker.
struct Member<E> {
    connection: Box<Socket<E>>,
    waker: Arc<ConnectionWaker<E>>,
}

impl<E: ConnectionHandler> EventLoop<E> {
    /// Creates a loop without connections.
    pub(crate) fn new() -> io::Result<EventLoop<E>> {
        let poll = Poll::new()?;
        let handle = LoopHandle::new(Waker::new(poll.registry(), WAKER)?, FIRST);
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(EVENTS),
            handle,
            connections: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            finish: None,
        })
    }

    /// Returns a handle for other threads.
    pub(crate) fn handle(&self) -> LoopHandle<E> {
        self.handle.clone()
    }

    /// Registers a listener.
    pub(crate) fn watch(&self, listener: &mut impl Source) -> io::Result<()> {
        listener.register(self.poll.registry(), LISTENER, Interest::READABLE)
    }

    /// Runs until the loop has to finish, and returns how many connections it had to close then.
    ///
    /// `accept` is called after every round, with whether the listener is ready. It returns the moment at which it wants
    /// to be called in any case. When the loop has to finish, `accept` is dropped before any connection learns that.
    pub(crate) fn run(mut self, accept: impl FnMut(bool) -> Option<Instant>) -> usize {
        let (mut accept, mut accept_at) = (Some(accept), None);
        while !self.is_over() {
            let listener_ready = match self.wait(accept_at) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "an event loop has failed");
                    break;
                }
            };
            // The listener closes first: a client whose connection ends may come back at once.
            if self.finish.is_some() {
                accept = None;
            }
            self.run_turns();
            accept_at = accept.as_mut().and_then(|accept| accept(listener_ready));
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

    /// Waits until there is something to do, and until the given moment at most. Returns whether the listener is ready.
    fn wait(&mut self, until: Option<Instant>) -> io::Result<bool> {
        let timeout = match self.ready.is_empty() && self.handle.sleep() {
            true => self.timeout(until),
            false => Some(Duration::ZERO),
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            // An interrupted poll leaves no events.
            _ => {}
        }
        let mut listener_ready = false;
        for event in &self.events {
            match event.token() {
                WAKER => {}
                LISTENER => listener_ready = true,
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
        Ok(listener_ready)
    }

    /// Runs one round: waits, then gives turns. Returns whether the listener is ready.
    #[cfg(test)]
    pub(crate) fn round(&mut self, until: Option<Instant>) -> io::Result<bool> {
        let listener_ready = self.wait(until)?;
        self.run_turns();
        Ok(listener_ready)
    }

    /// Gives one turn to each connection that has something to do.
    fn run_turns(&mut self) {
        let mut next = NextPoll::Wait;
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { break };
            next = next.max(self.run_turn(token));
        }
        if next == NextPoll::Spin {
            thread::yield_now();
        }
    }

    /// Returns how long to wait for events.
    fn timeout(&self, until: Option<Instant>) -> Option<Duration> {
        let timer = self.timers.first().map(|(moment, _)| *moment);
        let first = [timer, until, self.finish].into_iter().flatten().min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Takes new connections and wake-ups from other threads.
    fn take_messages(&mut self) {
        let messages = self.handle.take();
        self.finish = messages.finish;
        for (waker, mut connection) in messages.joining {
            let token = waker.token();
            match connection.register(self.poll.registry(), token) {
                Ok(()) => {
                    queue(&mut self.ready, token, &mut connection);
                    self.connections.insert(token, Member { connection, waker });
                }
                Err(error) => {
                    self.handle.note_end();
                    connection.end(&CloseReason::Stream(error));
                }
            }
        }
        for waker in messages.woken {
            if let Some(member) = self.connections.get_mut(&waker.token()) {
                queue(&mut self.ready, waker.token(), &mut member.connection);
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

    fn run_turn(&mut self, token: Token) -> NextPoll {
        let Some(Member { connection, waker }) = self.connections.get_mut(&token) else {
            return NextPoll::Wait;
        };
        connection.queued = false;
        match connection.turn(|| waker.clear()) {
            Ok(next) => {
                if next > NextPoll::Wait {
                    queue(&mut self.ready, token, connection);
                }
                let deadline = connection.deadline();
                if let Some(deadline) = deadline.filter(|new| connection.timer.is_none_or(|old| *new < old)) {
                    if let Some(old) = connection.timer.replace(deadline) {
                        self.timers.remove(&(old, token));
                    }
                    self.timers.insert((deadline, token));
                }
                next
            }
            Err(reason) => {
                self.end(token, &reason);
                NextPoll::Wait
            }
        }
    }

    fn end(&mut self, token: Token, reason: &CloseReason) {
        let Some(Member { connection, .. }) = self.connections.remove(&token) else { return };
        if let Some(timer) = connection.timer {
            self.timers.remove(&(timer, token));
        }
        self.handle.note_end();
        connection.end(reason);
    }
}

/// Queues a connection for a turn, once.
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

    /// A handler that answers each `?`, and reports what happens to it.
    struct Probe {
        wants: Arc<AtomicBool>,
        timeout: Option<Time>,
        answer: Vec<u8>,
        waker: Arc<ConnectionWaker<Probe>>,
        reports: Sender<String>,
    }

    impl ConnectionHandler for Probe {
        fn transmit(&mut self, _: Time, out: &mut Vec<u8>, _: usize, _: bool) -> Option<FileSlice> {
            out.append(&mut self.answer);
            None
        }
        fn body_failed(&mut self, _: TransferId, _: RequestError) {}
        fn receive(&mut self, _: Time, bytes: Bytes) -> Result<(), PeerError> {
            assert_ne!(&bytes[..], b"panic", "on purpose");
            if bytes.contains(&b'?') {
                self.answer.push(b'!');
                self.waker.wake();
            }
            self.reports.send(bytes.len().to_string()).unwrap();
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
            self.reports.send("timeout".into()).unwrap();
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

    /// The other end of a connection.
    struct Peer {
        stream: TcpStream,
        waker: Arc<ConnectionWaker<Probe>>,
        wants: Arc<AtomicBool>,
        reports: Receiver<String>,
    }

    fn join(events: &mut EventLoop<Probe>, timeout: Option<Time>) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let other = listener.accept().unwrap().0;
        other.set_nonblocking(true).unwrap();
        let other = mio::net::TcpStream::from_std(other);
        let (sender, reports) = mpsc::channel();
        let wants = Arc::new(AtomicBool::new(true));
        let waker = events.handle.connection_waker();
        let answer = Vec::new();
        let (own_waker, own_sender) = (waker.clone(), sender.clone());
        let probe = Probe { wants: wants.clone(), timeout, answer, waker: own_waker, reports: own_sender };
        let io = ConnectionIo::begin(&other, |_| probe).unwrap();
        let on_end = Box::new(move |reason: &_| drop(sender.send(format!("{reason}"))));
        events.handle.join(waker.clone(), Socket::new(other, io, on_end));
        round(events);
        Peer { stream, waker, wants, reports }
    }

    /// Runs one round without waiting.
    fn round(events: &mut EventLoop<Probe>) {
        events.round(Some(Instant::now())).unwrap();
    }

    #[test]
    fn unwanted_input_is_read_once_it_is_wanted() {
        let mut events = EventLoop::new().unwrap();
        let mut peer = join(&mut events, None);
        peer.wants.store(false, Ordering::SeqCst);
        peer.stream.write_all(b"hello").unwrap();
        (0..3).for_each(|_| round(&mut events));
        assert!(peer.reports.try_recv().is_err());
        // The kernel does not report it again.
        peer.wants.store(true, Ordering::SeqCst);
        peer.waker.wake();
        round(&mut events);
        assert_eq!(peer.reports.try_recv().unwrap(), "5");
    }

    #[test]
    fn an_immediate_answer_leaves_in_the_same_turn() {
        let mut events = EventLoop::new().unwrap();
        let mut peer = join(&mut events, None);
        for _ in 0..10 {
            peer.stream.write_all(b"?").unwrap();
            while peer.reports.try_recv().is_err() {
                events.round(None).unwrap();
            }
            let mut answer = [0; 2];
            assert_eq!(peer.stream.read(&mut answer).unwrap(), 1);
            assert!(events.ready.is_empty() && events.handle.sleep(), "there is nothing left to do");
        }
        let mut fetched = Events::with_capacity(8);
        events.poll.poll(&mut fetched, Some(Duration::ZERO)).unwrap();
        assert!(fetched.iter().all(|event| event.token() != WAKER));
    }

    #[test]
    fn a_busy_connection_gets_one_turn_a_round_and_is_read_fully() {
        let mut events = EventLoop::new().unwrap();
        let (mut loud, mut quiet) = (join(&mut events, None), join(&mut events, None));
        loud.stream.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(n) = loud.stream.write(&[0; 64 << 10]) {
            written += n;
        }
        quiet.stream.write_all(b"!").unwrap();
        round(&mut events);
        assert_eq!(quiet.reports.try_recv().unwrap(), "1");
        let first: Vec<String> = loud.reports.try_iter().collect();
        assert!(first.len() <= 4, "{first:?}");
        let size = |report: &str| report.parse::<usize>().unwrap();
        let mut read: usize = first.iter().map(|report| size(report)).sum();
        while read < written {
            round(&mut events);
            read += loud.reports.try_iter().map(|report| size(&report)).sum::<usize>();
        }
    }

    #[test]
    fn a_panic_in_a_handler_ends_only_its_connection() {
        let mut events = EventLoop::new().unwrap();
        let (mut bad, mut good) = (join(&mut events, None), join(&mut events, None));
        bad.stream.write_all(b"panic").unwrap();
        good.stream.write_all(b"hello").unwrap();
        round(&mut events);
        assert!(bad.reports.try_recv().unwrap().contains("panicked"));
        assert_eq!(good.reports.try_recv().unwrap(), "5");
        assert_eq!((events.connections.len(), events.handle.connections()), (1, 1));
        // Its waker reaches no connection any more.
        bad.waker.wake();
        round(&mut events);
    }

    #[test]
    fn a_deadline_passes_without_other_events() {
        let mut events = EventLoop::new().unwrap();
        let peer = join(&mut events, Some(Time(Duration::from_millis(5))));
        let mut report = peer.reports.try_recv();
        while report.is_err() {
            events.round(None).unwrap();
            report = peer.reports.try_recv();
        }
        assert_eq!(report.unwrap(), "timeout");
        assert!(events.timers.is_empty());
    }

    #[test]
    fn a_finishing_loop_takes_no_connection_and_ends_with_its_last() {
        let mut events = EventLoop::new().unwrap();
        let peer = join(&mut events, None);
        events.handle.finish(Instant::now() + Duration::from_secs(3600));
        round(&mut events);
        assert!(!events.is_over());
        let late = join(&mut events, None);
        assert_eq!(events.connections.len(), 1);
        drop((late, peer.stream));
        assert_eq!(events.run(|_| unreachable!("the listener is closed")), 0);
        assert!(peer.reports.try_recv().unwrap().contains("closed"));
    }
}
