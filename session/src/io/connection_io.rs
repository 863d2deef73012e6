//! One end of a connection with its buffers, its clock, and its spin policy. A transport only adds readiness and timers.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blobferry_platform::spin::AdaptiveSpin;
use blobferry_protocol::Time;

use crate::io::buffers::{Clock, Input, Output, shut, tune};
use crate::io::{CloseReason, ConnectionHandler};

/// A [`ConnectionHandler`] with its buffers and its clock. An idle one holds no buffer.
///
/// A transport calls these, until one of them returns how the connection has ended:
/// * [`write`](Self::write), also after each of the others, since there may be an answer;
/// * [`read`](Self::read), while the socket is readable and the handler [wants input](Self::wants_input);
/// * [`timeout`](Self::timeout), at the [`deadline`](Self::deadline).
///
/// When there is nothing to do, [`should_spin`](Self::should_spin) says whether to poll the socket again before sleeping.
#[derive(Debug)]
pub struct ConnectionIo<H> {
    handler: H,
    clock: Clock,
    input: Input,
    output: Output,
    /// Bytes that were moved in either direction since the transport was last idle.
    moved: usize,
    spin: AdaptiveSpin,
    /// Whether a large blob is being moved, so that more may arrive soon.
    is_large: bool,
    /// Small reads since the last large one.
    small_reads: u8,
    /// Everything is sent. The peer must close its end until then.
    leaving: Option<Instant>,
}

/// How long a peer may take to close its end after everything was sent. Closing a socket that the peer still writes to
/// would discard what the peer has not read yet.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes moved between two idle moments, from which a part of a large blob is assumed.
const SPIN_MIN_BYTES: usize = 64 << 10;
/// Bytes moved between two idle moments, below which they count as a small read.
const SMALL_READ: usize = 32 << 10;
/// Consecutive small reads after which no large blob is assumed any more. Credit for one causes some.
const MAX_SMALL_READS: u8 = 8;

impl<H: ConnectionHandler> ConnectionIo<H> {
    /// Sets the socket's options, starts the clock, and creates the handler.
    ///
    /// # Errors
    /// The socket options cannot be set.
    pub fn begin(stream: &impl AsFd, handler: impl FnOnce(Time) -> H) -> io::Result<ConnectionIo<H>> {
        tune(stream)?;
        let clock = Clock::start();
        let handler = handler(clock.now());
        let (input, output, spin) = (Input::default(), Output::default(), AdaptiveSpin::default());
        let (moved, is_large, small_reads, leaving) = (0, false, 0, None);
        Ok(ConnectionIo { handler, clock, input, output, moved, spin, is_large, small_reads, leaving })
    }

    /// Returns the handler.
    #[must_use]
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// Writes until the socket accepts no more or there is no more to send. When everything is sent, shuts the socket down
    /// for writing; bytes that still arrive are dropped, until the peer closes its end.
    ///
    /// `attempt` runs the given operation if the socket is writable, and returns its result. If the operation returns
    /// [`ErrorKind::WouldBlock`], `attempt` notes that the socket is not writable any more. If the socket is not writable,
    /// `attempt` returns [`ErrorKind::WouldBlock`] itself.
    ///
    /// # Errors
    /// The connection has ended: [`CloseReason::Peer`] if the peer does not read what is sent.
    pub fn write(
        &mut self,
        socket: &impl AsFd,
        mut attempt: impl FnMut(&mut dyn FnMut() -> io::Result<usize>) -> io::Result<usize>,
    ) -> Result<(), CloseReason> {
        if self.leaving.is_some() {
            return Ok(());
        }
        self.moved += self.output.write(&mut self.handler, self.clock.now(), socket, &mut attempt)?;
        self.input.set_rcvlowat(socket, || self.handler.payload_due());
        if !self.output.is_empty() {
            self.handler.catch_up();
        }
        match self.handler.error() {
            Some(error) => Err(error.into()),
            None if self.output.is_empty() && self.handler.is_finished() => {
                self.leaving = Some(Instant::now() + CLOSE_TIMEOUT);
                // An error means that the peer has closed its end already.
                shut(socket).map_err(|_| CloseReason::Finished)
            }
            None => Ok(()),
        }
    }

    /// Returns whether there are bytes that the socket has not accepted yet.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads once. Returns `false` if there was nothing to read ([`io::ErrorKind::WouldBlock`]).
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
        let read = self.input.read(&mut self.handler, self.clock.now(), read)?;
        self.moved += read;
        Ok(read > 0)
    }

    /// Returns whether an idle transport should yield and poll the socket again before it sleeps. While a large blob is
    /// moved, its next piece arrives sooner than a sleeping thread wakes.
    pub fn should_spin(&mut self) -> bool {
        let moved = std::mem::take(&mut self.moved);
        if moved > 0 {
            self.spin.reset();
            self.small_reads = if moved < SMALL_READ { self.small_reads.saturating_add(1) } else { 0 };
        }
        let is_large = moved >= SPIN_MIN_BYTES || self.is_large && self.small_reads < MAX_SMALL_READS;
        self.is_large = is_large && self.spin.should_spin();
        self.is_large
    }

    /// Suppresses readiness events for incoming data while the transport polls with [`has_input`](Self::has_input);
    /// otherwise a multi-threaded runtime wakes a thread for each. Undo this before the transport sleeps.
    pub fn suppress_readiness(&mut self, socket: &impl AsFd, suppress: bool) {
        self.input.suppress_readiness(socket, suppress, || self.handler.payload_due());
    }

    /// Returns whether a read may succeed. The kernel always reports the end of the stream as a readiness event.
    pub fn has_input(&self, socket: &impl AsFd) -> bool {
        self.input.has_input(socket, self.handler.payload_due())
    }

    /// Returns whether more may be read now. If not, what has arrived is still being processed, and the handler wakes the
    /// transport when that is done.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.leaving.is_some() || self.handler.wants_input()
    }

    /// Returns when [`timeout`](Self::timeout) must be called. Every other call may change it.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.leaving.or_else(|| self.handler.poll_timeout().map(|time| self.clock.instant(time)))
    }

    /// Handles timeouts, and frees the buffers for the next read. Calling it too early does no harm. Before a timeout
    /// declares the peer dead, the socket is read once more, since readiness may have been suppressed.
    ///
    /// # Errors
    /// The connection has ended: the peer is gone, or has taken too long to close its end.
    pub fn timeout(&mut self, socket: &impl AsFd) -> Result<(), CloseReason> {
        if let Some(until) = self.leaving {
            return if Instant::now() < until { Ok(()) } else { Err(CloseReason::Finished) };
        }
        if self.input.is_rcvlowat_set() && self.handler.wants_input() {
            self.read(|buffer| Ok(rustix::io::read(socket, buffer)?))?;
        }
        self.input.release();
        Ok(self.handler.handle_timeout(self.clock.now())?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::io::testing::NullHandler;

    /// Returns a non-blocking stream, the connection that expects a blob of `size` bytes from it, and the peer's end.
    fn receiver(size: u64) -> (TcpStream, ConnectionIo<NullHandler>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        let handler = NullHandler { due: size, ..NullHandler::default() };
        let connection = ConnectionIo::begin(&stream, |_| handler).unwrap();
        (stream, connection, peer)
    }

    /// Returns whether the kernel reports input within this time.
    fn is_readable(stream: &TcpStream, seconds: i64) -> bool {
        let mut polled = [PollFd::new(stream, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() > 0
    }

    /// Sends `size` bytes, and waits until they have arrived.
    fn send(stream: &TcpStream, peer: &mut TcpStream, size: usize) {
        peer.write_all(&vec![1; size]).unwrap();
        while rustix::io::ioctl_fionread(stream).unwrap() < size as u64 {
            std::thread::yield_now();
        }
    }

    /// Sends `size` bytes of a blob, and reads them at full speed.
    fn flow(
        stream: &TcpStream,
        connection: &mut ConnectionIo<NullHandler>,
        peer: &mut TcpStream,
        size: usize,
    ) {
        send(stream, peer, size);
        let due = connection.handler().due - size as u64;
        while connection.handler().due > due {
            connection.read(|buffer| { stream }.read(buffer)).unwrap();
        }
        connection.write(stream, |write| write()).unwrap();
    }

    /// Does what a transport does when the socket is readable.
    fn turn(stream: &TcpStream, connection: &mut ConnectionIo<NullHandler>) {
        connection.read(|buffer| { stream }.read(buffer)).unwrap();
        connection.write(stream, |write| write()).unwrap();
    }

    #[test]
    fn due_payload_is_reported_when_all_of_it_is_there() {
        let (stream, mut connection, mut peer) = receiver(80_000);
        flow(&stream, &mut connection, &mut peer, 40_000);
        peer.write_all(&[1; 39_999]).unwrap();
        assert!(!is_readable(&stream, 0));
        peer.write_all(&[1]).unwrap();
        assert!(is_readable(&stream, 60));
        turn(&stream, &mut connection);
        assert_eq!(connection.handler().happened.last().unwrap(), "40000 bytes");
        // Behind the payload every byte is reported again.
        peer.write_all(&[2]).unwrap();
        assert!(is_readable(&stream, 60));
    }

    #[test]
    fn suppressed_readiness_is_polled_and_reported_on_release() {
        let (stream, mut connection, mut peer) = receiver(0);
        connection.suppress_readiness(&stream, true);
        assert!(!connection.has_input(&stream));
        send(&stream, &mut peer, 10);
        assert!(connection.has_input(&stream) && !is_readable(&stream, 0));
        connection.suppress_readiness(&stream, false);
        assert!(is_readable(&stream, 60));
        // A poll also waits until all payload that is due is there.
        turn(&stream, &mut connection);
        connection.handler.due = 100;
        connection.suppress_readiness(&stream, true);
        send(&stream, &mut peer, 99);
        assert!(!connection.has_input(&stream));
        peer.write_all(&[1]).unwrap();
        while !connection.has_input(&stream) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn end_of_stream_is_reported_although_payload_is_due() {
        let (stream, mut connection, mut peer) = receiver(1 << 20);
        flow(&stream, &mut connection, &mut peer, 100_000);
        drop(peer);
        assert!(is_readable(&stream, 60));
        let ended = connection.read(|buffer| { &stream }.read(buffer));
        assert!(matches!(ended, Err(CloseReason::Closed)), "{ended:?}");
    }

    #[test]
    fn unreported_input_is_read_before_a_timeout() {
        let (stream, mut connection, mut peer) = receiver(200_000);
        flow(&stream, &mut connection, &mut peer, 100_000);
        peer.write_all(&[1; 10]).unwrap();
        // Nothing reports when the bytes have arrived.
        while connection.handler().due > 99_990 {
            connection.timeout(&stream).unwrap();
        }
        let [.., before, last] = &connection.handler().happened[..] else { panic!("nothing has happened") };
        assert_eq!((&before[..], &last[..]), ("10 bytes", "timeout"));
        // The buffers are released, and every byte is reported again.
        connection.write(&stream, |write| write()).unwrap();
        peer.write_all(&[1]).unwrap();
        assert!(is_readable(&stream, 60));
    }

    #[test]
    fn spins_after_large_reads_and_not_after_small_ones() {
        let (stream, mut connection, mut peer) = receiver(0);
        peer.write_all(&[1; SPIN_MIN_BYTES / 2]).unwrap();
        while connection.moved < SPIN_MIN_BYTES / 2 {
            assert!(is_readable(&stream, 60));
            turn(&stream, &mut connection);
        }
        assert!(!connection.should_spin());
        for _ in 0..3 {
            peer.write_all(&[1; SPIN_MIN_BYTES]).unwrap();
            while connection.moved < SPIN_MIN_BYTES {
                assert!(is_readable(&stream, 60));
                turn(&stream, &mut connection);
            }
            assert!((0..1_000_000).any(|_| !connection.should_spin()), "it spins for ever");
            assert!(!connection.should_spin());
        }
        // Small requests and their answers, one after the other, behind a large read.
        peer.write_all(&[1; SPIN_MIN_BYTES]).unwrap();
        while connection.moved < SPIN_MIN_BYTES {
            assert!(is_readable(&stream, 60));
            turn(&stream, &mut connection);
        }
        let mut spins = connection.should_spin();
        for _ in 0..MAX_SMALL_READS {
            peer.write_all(&[1]).unwrap();
            assert!(is_readable(&stream, 60));
            turn(&stream, &mut connection);
            spins = connection.should_spin();
        }
        assert!(!spins);
    }
}
