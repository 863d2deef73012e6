//! One connection of a loop: its socket, what is known of the socket's readiness, and how much it may do in a turn.
//!
//! Readiness is edge-triggered: the kernel tells once that a socket has become readable, and not again before a read
//! has found nothing, or less than it had room for. So it is remembered here until then, also while nobody wants to
//! read, and when a turn was over too early.

use std::io::{self, ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use blobferry_session::io::{CloseReason, ConnectionHandler, ConnectionIo};
use mio::event::{Event, Source};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// Reads in one turn. One takes at most 256 KiB, so others wait for at most a megabyte of anybody's.
const READS: usize = 4;
/// Writes in one turn. One gives about 64 KiB, or a chunk.
const WRITES: usize = 8;

/// A connection that a loop can drive.
pub(crate) struct Socket<E> {
    stream: TcpStream,
    carrier: ConnectionIo<E>,
    readable: bool,
    writable: bool,
    /// The kernel will tell nothing new: only a read that finds nothing says that all was read.
    hung: bool,
    /// Its place in the list of those that are to have a turn.
    pub(crate) queued: bool,
    /// Its time has come.
    pub(crate) due: bool,
    /// When its time comes, or an earlier moment.
    pub(crate) timer: Option<Instant>,
    ended: OnEnd,
}

/// What a connection wants when its turn is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NextPoll {
    /// To sleep until something happens.
    #[default]
    Sleep,
    /// Another turn in a moment: there will be more of something large.
    Look,
    /// Another turn at once.
    Work,
}

/// Told how a connection has ended, after its socket was closed.
pub(crate) type OnEnd = Box<dyn FnOnce(&CloseReason) + Send>;

impl<E: ConnectionHandler> Socket<E> {
    pub(crate) fn new(stream: TcpStream, carrier: ConnectionIo<E>, ended: OnEnd) -> Socket<E> {
        let (readable, writable, hung, queued, due) = (false, false, false, false, false);
        Socket { stream, carrier, readable, writable, hung, queued, due, timer: None, ended }
    }

    /// Has the kernel tell of its readiness.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.stream.register(registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// The kernel has told. Ends and errors are found out by reading and writing.
    pub(crate) fn ready(&mut self, event: &Event) {
        self.hung |= event.is_read_closed() || event.is_error();
        self.readable |= self.hung || event.is_readable();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// One turn. `look` is called after what has arrived was taken, and before what is to be sent is: what was rung for
    /// until then is done with. A panic ends this connection, and no other.
    pub(crate) fn turn(&mut self, look: impl FnOnce()) -> Result<NextPoll, CloseReason> {
        self.safely(|connection| {
            connection.receive()?;
            look();
            match connection.write()? {
                NextPoll::Sleep if connection.carrier.should_spin() => Ok(NextPoll::Look),
                then => Ok(then),
            }
        })
    }

    /// The part of a turn that sends what waits.
    pub(crate) fn transmit(&mut self) -> Result<NextPoll, CloseReason> {
        self.safely(Self::write)
    }

    fn safely(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<NextPoll, CloseReason>,
    ) -> Result<NextPoll, CloseReason> {
        catch_unwind(AssertUnwindSafe(|| act(self))).unwrap_or_else(|_| {
            let error = "its handling panicked: this is a defect";
            tracing::error!(error, "a connection is given up");
            Err(CloseReason::Stream(io::Error::other(error)))
        })
    }

    fn receive(&mut self) -> Result<(), CloseReason> {
        if std::mem::take(&mut self.due) {
            self.carrier.timeout(&self.stream)?;
        }
        for _ in 0..READS {
            if !self.readable || !self.carrier.wants_input() {
                break;
            }
            let (mut stream, mut all) = (&self.stream, false);
            let some = self.carrier.read(|buffer| {
                let read = stream.read(buffer);
                all = matches!(read, Ok(n) if n < buffer.len());
                read
            })?;
            self.readable = some && (!all || self.hung);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<NextPoll, CloseReason> {
        let mut writes = 0;
        self.carrier.write(&self.stream, |write| {
            if !self.writable || writes == WRITES {
                return Err(ErrorKind::WouldBlock.into());
            }
            writes += 1;
            let written = write();
            self.writable = !matches!(&written, Err(error) if error.kind() == ErrorKind::WouldBlock);
            written
        })?;
        let reads = self.readable && self.carrier.wants_input();
        let work = reads || self.writable && self.carrier.has_output();
        Ok(if work { NextPoll::Work } else { NextPoll::Sleep })
    }

    /// When it wants a turn whatever happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.carrier.deadline()
    }

    /// Closes the socket, then tells.
    pub(crate) fn end(self, how: &CloseReason) {
        let Socket { stream, carrier, ended, .. } = self;
        drop(stream);
        ended(how);
        drop(carrier);
    }
}
