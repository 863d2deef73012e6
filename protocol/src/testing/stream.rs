//! Two ends of a simulated link that implement `Read` and `Write`, with virtual time.

use core::time::Duration;
use std::io;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::testing::link::{Link, Wire};
use crate::time::Time;

/// Both directions of a link: `wires[0]` leads from the first end to the second.
#[derive(Debug)]
struct Shared {
    now: Time,
    wires: [Wire; 2],
}

type SharedLink = Arc<Mutex<Shared>>;

fn lock(shared: &SharedLink) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One end of a link, like a socket that does not block. See [`Link::pair`].
///
/// * A read returns bytes that have arrived, [`WouldBlock`](io::ErrorKind::WouldBlock) if there are
///   none, and 0 bytes after the other end was dropped or the link was cut.
/// * A write sends all its bytes, or returns `WouldBlock` if the link's
///   [`capacity`](Link::capacity) is used up. It returns [`BrokenPipe`](io::ErrorKind::BrokenPipe)
///   after the other end was dropped or the link was cut.
#[derive(Debug)]
pub struct LinkEnd {
    shared: SharedLink,
    /// The index of the wire that leads away from this end.
    out: usize,
}

/// The virtual time of a link, and its failure. See [`Link::pair`].
#[derive(Clone, Debug)]
pub struct LinkClock {
    shared: SharedLink,
}

impl Link {
    /// Returns two ends of a link that implement [`Read`] and [`Write`], and the clock of the link.
    ///
    /// `self` is the direction from the first end to the second, and `back` the other one. Bytes
    /// arrive only when the clock is advanced by the link's [`delay`](Link::delay).
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::time::Duration;
    ///
    /// use blobferry_protocol::testing::Link;
    ///
    /// let (mut client, mut server, clock) = Link::default().pair(Link::default());
    /// client.write_all(b"hello")?;
    /// let mut bytes = [0; 10];
    /// assert_eq!(server.read(&mut bytes).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    /// clock.advance(Duration::from_millis(1));
    /// assert_eq!(server.read(&mut bytes)?, 5);
    /// drop(client);
    /// assert_eq!(server.read(&mut bytes)?, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn pair(self, back: Link) -> (LinkEnd, LinkEnd, LinkClock) {
        let wires = [Wire::new(self), Wire::new(back)];
        let shared = Arc::new(Mutex::new(Shared { now: Time::ZERO, wires }));
        let end = |out| LinkEnd { shared: Arc::clone(&shared), out };
        (end(0), end(1), LinkClock { shared: Arc::clone(&shared) })
    }
}

impl LinkClock {
    /// Returns the virtual time, which begins at [`Time::ZERO`].
    #[must_use]
    pub fn now(&self) -> Time {
        lock(&self.shared).now
    }

    /// Advances the virtual time.
    pub fn advance(&self, time: Duration) {
        let mut shared = lock(&self.shared);
        shared.now = shared.now + time;
    }

    /// Returns the earliest time at which bytes arrive at either end, if any are under way.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Time> {
        lock(&self.shared).wires.iter().filter_map(Wire::next_arrival).min()
    }

    /// Cuts the link in both directions. Bytes under way are lost.
    pub fn cut(&self) {
        lock(&self.shared).wires.iter_mut().for_each(Wire::cut);
    }
}

impl Read for LinkEnd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut shared = lock(&self.shared);
        let Shared { now, wires: [first, second] } = &mut *shared;
        let wire = if self.out == 0 { second } else { first };
        let bytes = wire.read(*now, buffer.len());
        if bytes.is_empty() && !buffer.is_empty() && !wire.is_at_end() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buffer.iter_mut().zip(&bytes).for_each(|(place, byte)| *place = *byte);
        Ok(bytes.len())
    }
}

impl Write for LinkEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = lock(&self.shared);
        let Shared { now, wires: [first, second] } = &mut *shared;
        let wire = if self.out == 0 { first } else { second };
        if wire.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !wire.has_room() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.send(*now, bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LinkEnd {
    /// Closes both directions. The other end can still read what was sent before.
    fn drop(&mut self) {
        lock(&self.shared).wires.iter_mut().for_each(Wire::close);
    }
}
