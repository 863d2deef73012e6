//! One end of a connection with all that lies between it and its stream: what is left of a transport is to know when
//! the stream is ready, and when it is time.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use blobferry_protocol::Time;

use super::stream::{Clock, Input, Output, tune};
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
}

impl<E: Endpoint> Carrier<E> {
    /// Tunes the stream's socket, starts the clock, and makes the endpoint.
    ///
    /// # Errors
    /// The socket can not be tuned.
    pub fn begin(stream: &impl AsFd, endpoint: impl FnOnce(Time) -> E) -> io::Result<Carrier<E>> {
        tune(stream)?;
        let clock = Clock::start();
        let endpoint = endpoint(clock.now());
        Ok(Carrier { endpoint, clock, input: Input::default(), output: Output::default() })
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &E {
        &self.endpoint
    }

    /// Writes until the stream takes no more ([`io::ErrorKind::WouldBlock`]) or there is no more to say.
    ///
    /// # Errors
    /// The connection has ended: [`Ended::Finished`] if everything was said.
    pub fn write(&mut self, write: impl FnMut(&[u8]) -> io::Result<usize>) -> Result<(), Ended> {
        self.output.write(&mut self.endpoint, self.clock.now(), write)?;
        if self.output.is_empty() && self.endpoint.is_finished() { Err(Ended::Finished) } else { Ok(()) }
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
    pub fn read(&mut self, read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Result<bool, Ended> {
        self.input.read(&mut self.endpoint, self.clock.now(), read)
    }

    /// May more be read now? While not, what has arrived is being worked off, and the endpoint's wake-up tells when
    /// it was.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.endpoint.wants_input()
    }

    /// When [`timeout`](Self::timeout) wants to be called. May be later after every other call, never earlier than
    /// that.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.endpoint.poll_timeout().map(|time| self.clock.instant(time))
    }

    /// Does what is due, and lets go of buffers that were kept for the next read. Called too early it does no harm.
    ///
    /// # Errors
    /// The connection has ended: the peer is gone.
    pub fn timeout(&mut self) -> Result<(), Ended> {
        self.input.release();
        Ok(self.endpoint.handle_timeout(self.clock.now())?)
    }
}
