//! One connection: its socket, what is known of the socket's readiness, and how much work it may do in a turn.
//!
//! Readiness is edge-triggered: the kernel reports once that a socket is readable, and not again before a read finds
//! nothing, or finds less than it had room for. So readiness is remembered here until then, also while the handler wants
//! no input, and after a turn has reached its limit.

use std::io::{self, ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use blobferry_session::io::{CloseReason, ConnectionHandler, ConnectionIo};
use mio::event::{Event, Source};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// Reads in one turn. Each takes at most 256 KiB, so another connection waits for at most 1 MiB of this one.
const READS: usize = 4;
/// Writes in one turn. Each sends about 64 KiB, or one chunk of a file.
const WRITES: usize = 8;

/// A connection that an event loop or a leader drives.
pub(crate) struct Socket<E> {
    stream: TcpStream,
    io: ConnectionIo<E>,
    readable: bool,
    writable: bool,
    /// The kernel reports nothing new any more. Only a read that finds nothing shows that everything was read.
    hung_up: bool,
    /// The connection is in the list of those that get a turn.
    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only event loops use it"))]
    pub(crate) queued: bool,
    /// The deadline has passed.
    pub(crate) due: bool,
    /// The moment of the event loop's timer for this connection: the deadline, or an earlier moment.
    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only event loops use it"))]
    pub(crate) timer: Option<Instant>,
    on_end: OnEnd,
}

/// What a connection wants after its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NextPoll {
    /// Wait until an event comes.
    #[default]
    Wait,
    /// Poll again without sleeping: more of a large blob will be there soon.
    Spin,
    /// Another turn at once.
    Again,
}

/// Receives the reason for which a connection has ended, after its socket was closed.
pub(crate) type OnEnd = Box<dyn FnOnce(&CloseReason) + Send>;

impl<E: ConnectionHandler> Socket<E> {
    pub(crate) fn new(stream: TcpStream, io: ConnectionIo<E>, on_end: OnEnd) -> Socket<E> {
        let (readable, writable, hung_up, queued, due) = (false, false, false, false, false);
        Socket { stream, io, readable, writable, hung_up, queued, due, timer: None, on_end }
    }

    /// Registers the socket, so that the kernel reports its readiness.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.stream.register(registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Notes an event of the socket. Ends and errors are found later, by reading and writing.
    pub(crate) fn ready(&mut self, event: &Event) {
        self.hung_up |= event.is_read_closed() || event.is_error();
        self.readable |= self.hung_up || event.is_readable();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// Runs one turn. `clear_wake` is called after input was handled and before output is written: output that was
    /// announced until then is part of this turn. A panic ends this connection, and no other.
    pub(crate) fn turn(&mut self, clear_wake: impl FnOnce()) -> Result<NextPoll, CloseReason> {
        self.catch_panic(|connection| {
            connection.receive()?;
            clear_wake();
            match connection.write()? {
                NextPoll::Wait if connection.io.should_spin() => Ok(NextPoll::Spin),
                next => Ok(next),
            }
        })
    }

    /// Runs the part of a turn that sends what is pending.
    #[cfg_attr(not(feature = "client"), expect(dead_code, reason = "only leaders use it"))]
    pub(crate) fn transmit(&mut self) -> Result<NextPoll, CloseReason> {
        self.catch_panic(Self::write)
    }

    fn catch_panic(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<NextPoll, CloseReason>,
    ) -> Result<NextPoll, CloseReason> {
        catch_unwind(AssertUnwindSafe(|| act(self))).unwrap_or_else(|_| {
            let error = "its handling panicked: this is a defect";
            tracing::error!(error, "closing a connection");
            Err(CloseReason::Stream(io::Error::other(error)))
        })
    }

    fn receive(&mut self) -> Result<(), CloseReason> {
        if std::mem::take(&mut self.due) {
            self.io.timeout(&self.stream)?;
        }
        for _ in 0..READS {
            if !self.readable || !self.io.wants_input() {
                break;
            }
            let (mut stream, mut is_all) = (&self.stream, false);
            let read_some = self.io.read(|buffer| {
                let read = stream.read(buffer);
                is_all = matches!(read, Ok(n) if n < buffer.len());
                read
            })?;
            self.readable = read_some && (!is_all || self.hung_up);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<NextPoll, CloseReason> {
        let mut writes = 0;
        self.io.write(&self.stream, |write| {
            if !self.writable || writes == WRITES {
                return Err(ErrorKind::WouldBlock.into());
            }
            writes += 1;
            let written = write();
            self.writable = !matches!(&written, Err(error) if error.kind() == ErrorKind::WouldBlock);
            written
        })?;
        let reads = self.readable && self.io.wants_input();
        let has_work = reads || self.writable && self.io.has_output();
        Ok(if has_work { NextPoll::Again } else { NextPoll::Wait })
    }

    /// Returns the moment at which the connection wants a turn in any case.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.io.deadline()
    }

    /// Closes the socket, then reports the reason.
    pub(crate) fn end(self, reason: &CloseReason) {
        let Socket { stream, io, on_end, .. } = self;
        drop(stream);
        on_end(reason);
        drop(io);
    }
}
