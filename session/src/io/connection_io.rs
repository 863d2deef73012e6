//! One end of a connection with all that lies between it and its stream: what is left of a transport is to know when
//! the stream is ready, and when it is time.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blobferry_protocol::Time;

use crate::io::buffers::{Clock, Input, Output, shut, tune};
use crate::io::{CloseReason, ConnectionHandler};
use blobferry_platform::spin::AdaptiveSpin;

/// An [`ConnectionHandler`] with its buffers and its clock. Idle, it holds no buffer.
///
/// A transport calls, whenever it likes, [`write`](Self::write) (after everything else, too: there may be an answer),
/// [`read`](Self::read) while the stream is readable and [`wants_input`](Self::wants_input), and
/// [`timeout`](Self::timeout) at the [`deadline`](Self::deadline), until one of them says how the connection has ended. While
/// there is nothing to do it asks whether to [look again](Self::should_spin) before it sleeps.
#[derive(Debug)]
pub struct ConnectionIo<E> {
    endpoint: E,
    clock: Clock,
    input: Input,
    output: Output,
    /// Bytes that went either way since the transport had nothing to do.
    moved: usize,
    looking: AdaptiveSpin,
    /// Much was moved of late, and more may come.
    large: bool,
    /// How often little was moved since.
    trifles: u8,
    /// Everything was said, and this is how long the peer is given to hear it.
    leaving: Option<Instant>,
}

/// How long a peer may take to close its end when everything was said. To close a socket that the peer still writes to
/// would take from it what it has not read yet.
const LEAVE: Duration = Duration::from_secs(2);

/// Bytes that are a part of something larger.
const MUCH: usize = 64 << 10;
/// Bytes that are not.
const LITTLE: usize = 32 << 10;
/// How often little may be moved beside something larger: its credit.
const FEW: u8 = 8;

impl<E: ConnectionHandler> ConnectionIo<E> {
    /// Tunes the stream's socket, starts the clock, and makes the endpoint.
    ///
    /// # Errors
    /// The socket can not be tuned.
    pub fn begin(stream: &impl AsFd, endpoint: impl FnOnce(Time) -> E) -> io::Result<ConnectionIo<E>> {
        tune(stream)?;
        let clock = Clock::start();
        let endpoint = endpoint(clock.now());
        let (input, output, looking) = (Input::default(), Output::default(), AdaptiveSpin::default());
        let (moved, large, trifles, leaving) = (0, false, 0, None);
        Ok(ConnectionIo { endpoint, clock, input, output, moved, looking, large, trifles, leaving })
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &E {
        &self.endpoint
    }

    /// Writes until the stream takes no more or there is no more to say. When everything was said, shuts the socket for
    /// writing; then what still comes is dropped, until the peer closes it, too.
    ///
    /// `attempt` does what it is given to do with the socket if that is writable, and remembers if it is not any more: then
    /// that gives [`ErrorKind::WouldBlock`], as do attempts that are not made.
    ///
    /// # Errors
    /// The connection has ended: [`CloseReason::Peer`] if the peer does not read what is said.
    pub fn write(
        &mut self,
        socket: &impl AsFd,
        mut attempt: impl FnMut(&mut dyn FnMut() -> io::Result<usize>) -> io::Result<usize>,
    ) -> Result<(), CloseReason> {
        if self.leaving.is_some() {
            return Ok(());
        }
        self.moved += self.output.write(&mut self.endpoint, self.clock.now(), socket, &mut attempt)?;
        self.input.mark(socket, || self.endpoint.payload_due());
        if !self.output.is_empty() {
            self.endpoint.catch_up();
        }
        match self.endpoint.error() {
            Some(error) => Err(error.into()),
            None if self.output.is_empty() && self.endpoint.is_finished() => {
                self.leaving = Some(Instant::now() + LEAVE);
                // A peer that has closed it already is gone all the sooner.
                shut(socket).map_err(|_| CloseReason::Finished)
            }
            None => Ok(()),
        }
    }

    /// Is there something that the stream has not taken yet?
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads once; `false` if there was nothing to read ([`io::ErrorKind::WouldBlock`]).
    ///
    /// # Errors
    /// The connection has ended.
    pub fn read(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<bool, CloseReason> {
        if self.leaving.is_some() {
            return match read(&mut [0; 4096]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
                Ok(0) | Err(_) => Err(CloseReason::Finished),
                Ok(_) => Ok(true),
            };
        }
        let read = self.input.read(&mut self.endpoint, self.clock.now(), read)?;
        self.moved += read;
        Ok(read > 0)
    }

    /// There is nothing to do: whether the transport should look at the stream once more, and let others go first, before
    /// it sleeps. While a large blob is moved the next piece of it will be there sooner than a thread wakes.
    pub fn should_spin(&mut self) -> bool {
        let moved = std::mem::take(&mut self.moved);
        if moved > 0 {
            self.looking.reset();
            self.trifles = if moved < LITTLE { self.trifles.saturating_add(1) } else { 0 };
        }
        let large = moved >= MUCH || self.large && self.trifles < FEW;
        self.large = large && self.looking.should_spin();
        self.large
    }

    /// Has the kernel tell of nothing that arrives, while the transport [asks](Self::has_input) for it: a runtime with several
    /// threads would have one woken for it. To be ended before the transport sleeps.
    pub fn suppress_readiness(&mut self, socket: &impl AsFd, hushed: bool) {
        self.input.suppress_readiness(socket, hushed, || self.endpoint.payload_due());
    }

    /// Whether a read is worth trying, as far as the socket can tell: of the end of the stream the kernel tells always.
    pub fn has_input(&self, socket: &impl AsFd) -> bool {
        self.input.has_input(socket, self.endpoint.payload_due())
    }

    /// May more be read now? While not, what has arrived is being worked off, and the endpoint's wake-up tells when
    /// it was.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.leaving.is_some() || self.endpoint.wants_input()
    }

    /// When [`timeout`](Self::timeout) wants to be called. Every other call may change it.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.leaving.or_else(|| self.endpoint.poll_timeout().map(|time| self.clock.instant(time)))
    }

    /// Does what is due, and lets go of buffers that were kept for the next read. Called too early it does no harm. What
    /// the kernel has not told of yet is read before.
    ///
    /// # Errors
    /// The connection has ended: the peer is gone, or has taken too long to close its end.
    pub fn timeout(&mut self, socket: &impl AsFd) -> Result<(), CloseReason> {
        if let Some(until) = self.leaving {
            return if Instant::now() < until { Ok(()) } else { Err(CloseReason::Finished) };
        }
        if self.input.has_mark() && self.endpoint.wants_input() {
            self.read(|buffer| Ok(rustix::io::read(socket, buffer)?))?;
        }
        self.input.release();
        Ok(self.endpoint.handle_timeout(self.clock.now())?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use blobferry_protocol::{PeerError, RequestError, TransferId};
    use bytes::Bytes;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::io::FileSlice;

    /// Expects payload, and notes what happens to it.
    #[derive(Default)]
    struct Receiver {
        due: u64,
        happened: Vec<String>,
    }

    impl ConnectionHandler for Receiver {
        fn transmit(&mut self, _: Time, _: &mut Vec<u8>, _: usize, _: bool) -> Option<FileSlice> {
            None
        }
        fn body_failed(&mut self, _: TransferId, _: RequestError) {}
        fn receive(&mut self, _: Time, bytes: Bytes) -> Result<(), PeerError> {
            self.due = self.due.saturating_sub(bytes.len() as u64);
            self.happened.push(format!("{} bytes", bytes.len()));
            Ok(())
        }
        fn wants_input(&self) -> bool {
            true
        }
        fn payload_due(&self) -> u64 {
            self.due
        }
        fn poll_timeout(&self) -> Option<Time> {
            None
        }
        fn handle_timeout(&mut self, _: Time) -> Result<(), PeerError> {
            self.happened.push("timeout".into());
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

    /// A stream that is not waited for, the carrier of a blob of `size` bytes that comes from there, and where it comes from.
    fn receiver(size: u64) -> (TcpStream, ConnectionIo<Receiver>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        let endpoint = Receiver { due: size, ..Receiver::default() };
        let carrier = ConnectionIo::begin(&stream, |_| endpoint).unwrap();
        (stream, carrier, peer)
    }

    /// Does the kernel say within so many seconds that there is something to read?
    fn is_readable(stream: &TcpStream, seconds: i64) -> bool {
        let mut asked = [PollFd::new(stream, PollFlags::IN)];
        poll(&mut asked, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() > 0
    }

    /// Has so many bytes arrive, where none wait.
    fn send(stream: &TcpStream, peer: &mut TcpStream, size: usize) {
        peer.write_all(&vec![1; size]).unwrap();
        while rustix::io::ioctl_fionread(stream).unwrap() < size as u64 {
            std::thread::yield_now();
        }
    }

    /// Has so many bytes of a blob arrive, and reads them in full flow.
    fn flow(stream: &TcpStream, carrier: &mut ConnectionIo<Receiver>, peer: &mut TcpStream, size: usize) {
        send(stream, peer, size);
        let due = carrier.endpoint().due - size as u64;
        while carrier.endpoint().due > due {
            carrier.read(|buffer| { stream }.read(buffer)).unwrap();
        }
        carrier.write(stream, |write| write()).unwrap();
    }

    /// What a transport does when it was told that there is something to read.
    fn turn(stream: &TcpStream, carrier: &mut ConnectionIo<Receiver>) {
        carrier.read(|buffer| { stream }.read(buffer)).unwrap();
        carrier.write(stream, |write| write()).unwrap();
    }

    #[test]
    fn the_kernel_tells_of_payload_when_all_of_it_is_there() {
        let (stream, mut carrier, mut peer) = receiver(80_000);
        flow(&stream, &mut carrier, &mut peer, 40_000);
        peer.write_all(&[1; 39_999]).unwrap();
        assert!(!is_readable(&stream, 0));
        peer.write_all(&[1]).unwrap();
        assert!(is_readable(&stream, 60));
        turn(&stream, &mut carrier);
        assert_eq!(carrier.endpoint().happened.last().unwrap(), "40000 bytes");
        // Behind the payload every byte counts again.
        peer.write_all(&[2]).unwrap();
        assert!(is_readable(&stream, 60));
    }

    #[test]
    fn a_kernel_that_is_hushed_answers_who_asks_and_tells_of_what_is_there_when_it_may() {
        let (stream, mut carrier, mut peer) = receiver(0);
        carrier.suppress_readiness(&stream, true);
        assert!(!carrier.has_input(&stream));
        send(&stream, &mut peer, 10);
        assert!(carrier.has_input(&stream) && !is_readable(&stream, 0));
        carrier.suppress_readiness(&stream, false);
        assert!(is_readable(&stream, 60));
        // Of payload, all that is due is waited for, by who looks, too.
        turn(&stream, &mut carrier);
        carrier.endpoint.due = 100;
        carrier.suppress_readiness(&stream, true);
        send(&stream, &mut peer, 99);
        assert!(!carrier.has_input(&stream));
        peer.write_all(&[1]).unwrap();
        while !carrier.has_input(&stream) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_kernel_tells_of_the_end_of_a_stream_whatever_is_missing() {
        let (stream, mut carrier, mut peer) = receiver(1 << 20);
        flow(&stream, &mut carrier, &mut peer, 100_000);
        drop(peer);
        assert!(is_readable(&stream, 60));
        let ended = carrier.read(|buffer| { &stream }.read(buffer));
        assert!(matches!(ended, Err(CloseReason::Closed)), "{ended:?}");
    }

    #[test]
    fn what_the_kernel_has_not_told_of_is_read_before_it_is_said_that_the_time_has_come() {
        let (stream, mut carrier, mut peer) = receiver(200_000);
        flow(&stream, &mut carrier, &mut peer, 100_000);
        peer.write_all(&[1; 10]).unwrap();
        // They are on their way there, and nothing tells when they have arrived.
        while carrier.endpoint().due > 99_990 {
            carrier.timeout(&stream).unwrap();
        }
        let [.., before, last] = &carrier.endpoint().happened[..] else { panic!("nothing has happened") };
        assert_eq!((&before[..], &last[..]), ("10 bytes", "timeout"));
        // It is not in full flow any more, and every byte counts.
        carrier.write(&stream, |write| write()).unwrap();
        peer.write_all(&[1]).unwrap();
        assert!(is_readable(&stream, 60));
    }

    #[test]
    fn a_transport_looks_again_some_times_where_much_was_moved_and_not_where_it_was_little() {
        let (stream, mut carrier, mut peer) = receiver(0);
        peer.write_all(&[1; MUCH / 2]).unwrap();
        while carrier.moved < MUCH / 2 {
            assert!(is_readable(&stream, 60));
            turn(&stream, &mut carrier);
        }
        assert!(!carrier.should_spin());
        for _ in 0..3 {
            peer.write_all(&[1; MUCH]).unwrap();
            while carrier.moved < MUCH {
                assert!(is_readable(&stream, 60));
                turn(&stream, &mut carrier);
            }
            assert!((0..1_000_000).any(|_| !carrier.should_spin()), "it looks for ever");
            assert!(!carrier.should_spin());
        }
        // Small requests and their answers, one after the other behind something large.
        peer.write_all(&[1; MUCH]).unwrap();
        while carrier.moved < MUCH {
            assert!(is_readable(&stream, 60));
            turn(&stream, &mut carrier);
        }
        let mut looks = carrier.should_spin();
        for _ in 0..FEW {
            peer.write_all(&[1]).unwrap();
            assert!(is_readable(&stream, 60));
            turn(&stream, &mut carrier);
            looks = carrier.should_spin();
        }
        assert!(!looks);
    }
}
