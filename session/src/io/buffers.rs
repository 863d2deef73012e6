//! The buffers between a [`ConnectionHandler`] and a non-blocking socket.
//!
//! What is read is passed on as [`Bytes`], which a sink may hold until it is written to a disk. Large buffers are reused
//! when the last holder drops them, because allocating them costs more than reading. An idle connection holds no buffer.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blobferry_platform::aligned_buf::AlignedBuf;
use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{PeerError, Time};
use bytes::Bytes;
use nix::libc;
use nix::sys::socket::SetSockOpt;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::io::{ConnectionHandler, FileSlice};

/// Bytes that are taken from the handler before they are written: one chunk of payload, and small messages between
/// two chunks.
const ENOUGH: usize = 64 << 10;
/// Bytes that are read at once while a large blob arrives.
const LARGE: usize = 256 << 10;
/// Bytes that are read at once otherwise.
const SMALL: usize = 16 << 10;
/// Bytes of due payload from which the kernel reports readiness only when all of it is there.
const RCVLOWAT_MIN: u64 = 32 << 10;
/// The low-water mark, in bytes, that suppresses readiness: a socket buffer does not reach it while it is polled.
const RCVLOWAT_SUPPRESSED: usize = 1 << 20;
/// Unused large buffers that a connection keeps, at most.
const MAX_SPARE: usize = 8;
/// Bytes that the kernel may hold unsent. Small messages would wait behind more.
const NOTSENT_LOWAT: u32 = 256 << 10;

/// Connections that may wait to be accepted, if the system allows it.
const ACCEPT_BACKLOG: i32 = 4096;

/// Raises the listen backlog. The default overflows in a burst of connections, and a refused client retries only after a
/// second.
///
/// # Errors
/// The error of the operating system.
pub fn set_accept_backlog(listener: &impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(listener).listen(ACCEPT_BACKLOG)
}

/// Sets the options of a TCP socket for small messages between large ones.
///
/// # Errors
/// The error of the operating system.
pub(super) fn tune(socket: &impl AsFd) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    Ok(())
}

// The macro contains the unsafe system call.
nix::setsockopt_impl!(
    RcvLowat,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    usize,
    nix::sys::socket::sockopt::SetUsize
);

/// The socket option `SO_RCVLOWAT`: the bytes that must be there before the kernel reports a socket as readable.
#[derive(Clone, Copy, Debug)]
struct RcvLowat;

/// Shuts a socket down for writing.
///
/// # Errors
/// The error of the operating system: the peer has closed its end.
pub(super) fn shut(socket: &impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write)
}

/// A clock that counts from the beginning of the connection, as the machines do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    /// Starts a clock.
    pub(super) fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Returns the time since the start.
    pub(super) fn now(self) -> Time {
        Time(self.0.elapsed())
    }

    /// Converts a time to a moment of the system's clock.
    pub(super) fn instant(self, time: Time) -> Instant {
        // A moment that the system cannot represent is as good as never.
        const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);
        self.0.checked_add(time.0).unwrap_or(self.0 + NEVER)
    }
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// Everything was sent, and both sides have closed the connection.
    #[error("the conversation was over")]
    Finished,
    /// The peer closed the stream.
    #[error("the peer closed the connection")]
    Closed,
    /// This side has stopped before everything was done.
    #[error("this side has stopped")]
    Stopped,
    /// The socket failed.
    #[error("{0}")]
    Stream(#[from] io::Error),
    /// The peer has violated the protocol, or counts as dead.
    #[error("{0}")]
    Peer(#[from] PeerError),
}

impl CloseReason {
    /// Logs the end of a connection, at a level that fits the reason.
    pub fn log(&self, peer: impl std::fmt::Display) {
        match self {
            CloseReason::Finished | CloseReason::Closed | CloseReason::Stopped => {
                tracing::debug!(target: "blobferry::connection", %peer, ended = %self, "connection ended")
            }
            CloseReason::Stream(_) => {
                tracing::info!(target: "blobferry::connection", %peer, ended = %self, "connection lost")
            }
            CloseReason::Peer(_) => {
                tracing::warn!(target: "blobferry::connection", %peer, ended = %self, "connection closed")
            }
        }
    }
}

/// What goes from a handler to a socket: bytes, and behind them perhaps a slice of a file.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    written: usize,
    body: Option<FileSlice>,
}

/// Runs an operation on a socket if the socket is writable: see
/// [`ConnectionIo::write`](super::ConnectionIo::write).
pub(super) type Attempt<'a> = &'a mut dyn FnMut(&mut dyn FnMut() -> io::Result<usize>) -> io::Result<usize>;

impl Output {
    /// Returns whether nothing is left to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_none() && self.written == self.bytes.len()
    }

    /// Writes until the socket accepts no more or the handler has no more to send. Returns the number of bytes written.
    ///
    /// # Errors
    /// The error of the socket.
    pub(super) fn write(
        &mut self,
        handler: &mut (impl ConnectionHandler + ?Sized),
        now: Time,
        socket: &impl AsFd,
        attempt: Attempt<'_>,
    ) -> Result<usize, CloseReason> {
        let mut written = 0;
        loop {
            if self.is_empty() {
                self.bytes.clear();
                self.written = 0;
                self.body = handler.transmit(now, &mut self.bytes, ENOUGH, true);
                if self.is_empty() {
                    self.bytes = Vec::new();
                    return Ok(written);
                }
            }
            let moved = match self.bytes.get(self.written..) {
                Some(rest @ [_, ..]) => {
                    let more = if self.body.is_some() { SendFlags::MORE } else { SendFlags::empty() };
                    let mut write = || Ok(rustix::net::send(socket, rest, SendFlags::NOSIGNAL | more)?);
                    attempt(&mut write).inspect(|n| self.written += n)
                }
                _ => self.move_body(handler, socket, &mut *attempt),
            };
            match moved {
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends as much of the file slice as the socket accepts at once. If the file does not allow that, it is read into the
    /// buffer. If it cannot be read either, zeros go in its place, because the peer expects these bytes; the handler then
    /// fails the transfer.
    fn move_body(
        &mut self,
        handler: &mut (impl ConnectionHandler + ?Sized),
        socket: &impl AsFd,
        attempt: Attempt<'_>,
    ) -> io::Result<usize> {
        let Some(body) = &mut self.body else { return Ok(0) };
        let mut refused = false;
        let moved = attempt(&mut || match body.send(socket) {
            Err(error) if is_the_files(&error) => {
                refused = true;
                Ok(0)
            }
            sent => sent,
        })?;
        if refused {
            self.bytes.clear();
            self.written = 0;
            if let Err(reason) = body.read(&mut self.bytes) {
                self.bytes.clear();
                self.bytes.resize(usize::try_from(body.left()).unwrap_or(usize::MAX), 0);
                handler.body_failed(body.transfer(), reason);
            }
        }
        if refused || body.left() == 0 {
            self.body = None;
        }
        Ok(moved)
    }
}

/// Returns whether an error is about the file, and not about the socket.
fn is_the_files(error: &io::Error) -> bool {
    let codes = [Errno::IO, Errno::INVAL, Errno::NOSYS, Errno::OVERFLOW].map(Errno::raw_os_error);
    error.kind() == ErrorKind::UnexpectedEof || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// What goes from a socket to a handler.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// The last read was a large one: more will arrive.
    is_busy: bool,
    /// The low-water mark that is set, in bytes; 0 if none is.
    rcvlowat: usize,
    /// The transport polls the socket, and needs no readiness events.
    is_suppressed: bool,
    spare: Arc<Spare>,
}

#[derive(Debug, Default)]
struct Spare(Mutex<Vec<AlignedBuf>>);

impl Input {
    /// Reads once. Returns the number of bytes, or 0 if there was nothing to read ([`ErrorKind::WouldBlock`]).
    ///
    /// # Errors
    /// The stream has ended or failed, or the peer has violated the protocol.
    pub(super) fn read(
        &mut self,
        handler: &mut (impl ConnectionHandler + ?Sized),
        now: Time,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, CloseReason> {
        let (bytes, n, full) = if self.is_busy {
            let mut reused = Reused { buffer: self.spare.take(), spare: self.spare.clone() };
            let Some(n) = once(&mut reused.buffer, &mut read)? else { return Ok(0) };
            let full = n == reused.buffer.len();
            (Bytes::from_owner(reused).slice(..n), n, full)
        } else {
            let mut buffer = vec![0; SMALL];
            let Some(n) = once(&mut buffer, &mut read)? else { return Ok(0) };
            buffer.truncate(n);
            (Bytes::from(buffer), n, n == SMALL)
        };
        self.is_busy = full || self.is_busy && n > SMALL;
        handler.receive(now, bytes)?;
        Ok(n)
    }

    /// Sets the low-water mark, so that the kernel reports readiness only when the payload that is `due` is there, or as
    /// much of it as is read at once. Payload arrives in pieces, and a wake-up for each takes longer than reading it. What
    /// is there can be read all the same.
    pub(super) fn set_rcvlowat(&mut self, socket: &impl AsFd, due: impl FnOnce() -> u64) {
        let rcvlowat = match self.is_busy.then(due) {
            _ if self.is_suppressed => RCVLOWAT_SUPPRESSED,
            Some(due) if due >= RCVLOWAT_MIN => usize::try_from(due).unwrap_or(LARGE).min(LARGE),
            _ => 0,
        };
        // If the system does not support the option, it reports every piece.
        if rcvlowat != self.rcvlowat && RcvLowat.set(socket, &rcvlowat.max(1)).is_ok() {
            self.rcvlowat = rcvlowat;
        }
    }

    /// Suppresses readiness events, or ends that. In the latter case the kernel reports what is there already.
    pub(super) fn suppress_readiness(
        &mut self,
        socket: &impl AsFd,
        suppress: bool,
        due: impl FnOnce() -> u64,
    ) {
        if std::mem::replace(&mut self.is_suppressed, suppress) != suppress {
            self.set_rcvlowat(socket, due);
        }
    }

    /// Returns whether at least `due` bytes may be readable. Always `true` unless readiness is suppressed.
    pub(super) fn has_input(&self, socket: &impl AsFd, due: u64) -> bool {
        let due = due.clamp(1, LARGE as u64);
        // Otherwise a read finds out as cheaply.
        !self.is_suppressed || rustix::io::ioctl_fionread(socket).is_ok_and(|there| there >= due)
    }

    /// Returns whether bytes may be there that the kernel has not reported.
    pub(super) fn is_rcvlowat_set(&self) -> bool {
        self.rcvlowat > 0
    }

    /// Frees the spare buffers.
    pub(super) fn release(&mut self) {
        self.is_busy = false;
        self.spare.clear();
    }
}

/// Reads at least a byte. Returns `None` if there is none yet.
fn once(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> Result<Option<usize>, CloseReason> {
    loop {
        return match read(buffer) {
            Ok(0) => Err(CloseReason::Closed),
            Ok(n) => Ok(Some(n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error.into()),
        };
    }
}

impl Spare {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<AlignedBuf>) -> T) -> T {
        act(&mut self.0.lock())
    }

    fn take(&self) -> AlignedBuf {
        self.with(Vec::pop).unwrap_or_else(|| AlignedBuf::new(LARGE))
    }

    fn put(&self, buffer: AlignedBuf) {
        self.with(|spare| {
            if spare.len() < MAX_SPARE {
                spare.push(buffer);
            }
        });
    }

    fn clear(&self) {
        self.with(|spare| *spare = Vec::new());
    }
}

/// A large buffer in use. When it is dropped, it becomes spare again.
struct Reused {
    buffer: AlignedBuf,
    spare: Arc<Spare>,
}

impl AsRef<[u8]> for Reused {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Reused {
    fn drop(&mut self) {
        self.spare.put(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};

    use blobferry_protocol::{RequestError, Slice, TransferId};

    use super::*;
    use crate::io::testing::NullHandler;
    use crate::io::{OutgoingTransfers, Source};

    /// Sends a slice of ten bytes to a place that does not support `sendfile`; the file has `len` bytes then. Returns what
    /// is to be written instead, the handler, and whether the slice is done.
    fn sent_without_sendfile(len: u64) -> (Vec<u8>, NullHandler, bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789abcdef").unwrap();
        let (transfer, mut outgoing) = (TransferId(1), OutgoingTransfers::default());
        outgoing.insert(transfer, Source::file(File::open(&path).unwrap(), 16));
        let body = outgoing.give(Slice { transfer, offset: 2, len: 10 }, &mut Vec::new(), true).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();

        // `sendfile` refuses a file that is opened for appending.
        let end = File::options().append(true).create(true).open(dir.path().join("end")).unwrap();
        let (mut output, mut handler) = (Output { body, ..Output::default() }, NullHandler::default());
        output.move_body(&mut handler, &end, &mut |attempt| attempt()).unwrap();
        (output.bytes, handler, output.body.is_none())
    }

    #[test]
    fn slice_is_read_if_sendfile_is_refused() {
        let (bytes, handler, done) = sent_without_sendfile(16);
        assert_eq!((&bytes[..], handler.failed.len(), done), (&b"23456789ab"[..], 0, true));
    }

    #[test]
    fn unreadable_slice_is_zeros_and_fails_the_transfer() {
        let (bytes, handler, done) = sent_without_sendfile(7);
        assert_eq!((&bytes[..], done), (&[0; 10][..], true));
        assert!(
            matches!(&handler.failed[..], [RequestError::Source { detail }] if detail.contains("shorter")),
            "{:?}",
            handler.failed
        );
    }

    #[test]
    fn burst_of_connections_fits_the_accept_backlog() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_accept_backlog(&listener).unwrap();
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
        let most = most.map_or(128, |most| most.trim().parse().unwrap());
        let address = listener.local_addr().unwrap();
        // A connection that does not fit is not made within this time.
        let timeout = Duration::from_secs(20);
        let connect = |_| TcpStream::connect_timeout(&address, timeout).unwrap();
        let burst: Vec<TcpStream> = (0..most.min(400)).map(connect).collect();
        assert!(burst.len() >= 128);
    }
}
