//! One end of a connection with all that lies between it and its stream: what is left of a transport is to know when
//! the stream is ready, and when it is time.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blobferry_protocol::Time;

use super::stream::{Clock, Input, Output, shut, tune};
use super::{Ended, Endpoint};

/// An [`Endpoint`] with its buffers and its clock. Idle, it holds no buffer.
///
/// A transport calls, whenever it likes, [`write`](Self::write) (after everything else, too: there may be an answer),
/// [`read`](Self::read) while the stream is readable and [`wants_input`](Self::wants_input), and
/// [`timeout`](Self::timeout) at the [`deadline`](Self::deadline), until one of them says how the connection has ended.
#[derive(Debug)]
pub struct Carrier<E> {
    endpoint: E,
    clock: Clock,
    input: Input,
    output: Output,
    /// Everything was said, and this is how long the peer is given to hear it.
    leaving: Option<Instant>,
}

/// How long a peer may take to close its end when everything was said. To close a socket that the peer still writes to
/// would take from it what it has not read yet.
const LEAVE: Duration = Duration::from_secs(2);

impl<E: Endpoint> Carrier<E> {
    /// Tunes the stream's socket, starts the clock, and makes the endpoint.
    ///
    /// # Errors
    /// The socket can not be tuned.
    pub fn begin(stream: &impl AsFd, endpoint: impl FnOnce(Time) -> E) -> io::Result<Carrier<E>> {
        tune(stream)?;
        let clock = Clock::start();
        let endpoint = endpoint(clock.now());
        Ok(Carrier { endpoint, clock, input: Input::default(), output: Output::default(), leaving: None })
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
    /// The connection has ended: [`Ended::Peer`] if the peer does not read what is said.
    pub fn write(
        &mut self,
        socket: &impl AsFd,
        mut attempt: impl FnMut(&mut dyn FnMut() -> io::Result<usize>) -> io::Result<usize>,
    ) -> Result<(), Ended> {
        if self.leaving.is_some() {
            return Ok(());
        }
        self.output.write(&mut self.endpoint, self.clock.now(), socket, &mut attempt)?;
        if !self.output.is_empty() {
            self.endpoint.catch_up();
        }
        match self.endpoint.error() {
            Some(error) => Err(error.into()),
            None if self.output.is_empty() && self.endpoint.is_finished() => {
                self.leaving = Some(Instant::now() + LEAVE);
                // A peer that has closed it already is gone all the sooner.
                shut(socket).map_err(|_| Ended::Finished)
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
    pub fn read(&mut self, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Result<bool, Ended> {
        if self.leaving.is_some() {
            return match read(&mut [0; 4096]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
                Ok(0) | Err(_) => Err(Ended::Finished),
                Ok(_) => Ok(true),
            };
        }
        self.input.read(&mut self.endpoint, self.clock.now(), read)
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

    /// Does what is due, and lets go of buffers that were kept for the next read. Called too early it does no harm.
    ///
    /// # Errors
    /// The connection has ended: the peer is gone, or has taken too long to close its end.
    pub fn timeout(&mut self) -> Result<(), Ended> {
        if let Some(until) = self.leaving {
            return if Instant::now() < until { Ok(()) } else { Err(Ended::Finished) };
        }
        self.input.release();
        Ok(self.endpoint.handle_timeout(self.clock.now())?)
    }
}
