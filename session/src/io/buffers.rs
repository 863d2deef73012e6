//! The buffers between an [`ConnectionHandler`] and a stream that is read and written without waiting.
//!
//! What is read is handed on as [`Bytes`], and may be held for a while by whoever writes it to a disk. Large buffers
//! come back when they are let go, because new memory for each would cost more than the reading. A connection that is
//! idle holds no buffer at all.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blobferry_platform::sync::{Arc, Mutex};

use blobferry_protocol::{PeerError, Time};
use bytes::Bytes;
use nix::libc;
use nix::sys::socket::SetSockOpt;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::io::{ConnectionHandler, FileSlice};
use blobferry_platform::aligned_buf::AlignedBuf;

/// Bytes that are taken from the endpoint before they are written: one chunk of payload, and small messages
/// between two of them.
const ENOUGH: usize = 64 << 10;
/// Bytes that are read at once from a stream that has much to say.
const LARGE: usize = 256 << 10;
/// The same while it has little to say.
const SMALL: usize = 16 << 10;
/// A payload that is worth waiting for until all of it is there.
const WORTH: u64 = 32 << 10;
/// So much is not there where somebody looks, and reads it.
const HUSHED: usize = 1 << 20;
/// Large buffers that are kept while nobody uses them.
const SPARE: usize = 8;
/// Bytes that the kernel may hold unsent: more would only make small messages wait behind them.
const NOT_SENT: u32 = 256 << 10;

/// Callers that may wait at a server's door, where the system allows as many.
const CALLERS: i32 = 4096;

/// Lets many callers wait at a server's door. Libraries let so few that a crowd fills it in no time, and whom the system
/// turns away, be it a friend, tries again a second later.
///
/// # Errors
/// The system's.
pub fn set_accept_backlog(listener: &impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(listener).listen(CALLERS)
}

/// Makes a TCP socket fit for small messages between large ones.
///
/// # Errors
/// The system's.
pub(super) fn tune(socket: &impl AsFd) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(NOT_SENT)?;
    Ok(())
}

// The call itself, which is unsafe, is that library's.
nix::setsockopt_impl!(Mark, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize, nix::sys::socket::sockopt::SetUsize);

/// How many bytes are to be there before the kernel calls a socket readable (`SO_RCVLOWAT`).
#[derive(Clone, Copy, Debug)]
struct Mark;

/// Tells the peer that nothing more will be said.
///
/// # Errors
/// The system's: the peer is gone.
pub(super) fn shut(socket: &impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write)
}

/// Moments as the machines count them: since the connection began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub(super) fn start() -> Clock {
        Clock(Instant::now())
    }

    /// This moment.
    pub(super) fn now(self) -> Time {
        Time(self.0.elapsed())
    }

    /// The system's name for a moment.
    pub(super) fn instant(self, time: Time) -> Instant {
        // A moment that the system can not name is as good as never.
        const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);
        self.0.checked_add(time.0).unwrap_or(self.0 + NEVER)
    }
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// Everything that was to be said was said.
    #[error("the conversation was over")]
    Finished,
    /// The peer closed the stream.
    #[error("the peer closed the connection")]
    Closed,
    /// This side has stopped before the conversation was over.
    #[error("this side has stopped")]
    Stopped,
    /// The stream failed.
    #[error("{0}")]
    Stream(#[from] io::Error),
    /// The peer broke a rule, or is gone.
    #[error("{0}")]
    Peer(#[from] PeerError),
}

impl CloseReason {
    /// Tells the operator, as loudly as it deserves.
    pub fn log(&self, peer: impl std::fmt::Display) {
        match self {
            CloseReason::Finished | CloseReason::Closed | CloseReason::Stopped => {
                tracing::debug!(%peer, ended = %self, "connection ended")
            }
            CloseReason::Stream(_) => tracing::info!(%peer, ended = %self, "connection lost"),
            CloseReason::Peer(_) => tracing::warn!(%peer, ended = %self, "connection closed"),
        }
    }
}

/// What is on its way from an endpoint to a stream: bytes, and behind them perhaps a run of a file.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    written: usize,
    body: Option<FileSlice>,
}

/// Does something with a socket if that is writable, and remembers if it is not any more: then that gives
/// [`ErrorKind::WouldBlock`], as do attempts that are not made.
pub(super) type Attempt<'a> = &'a mut dyn FnMut(&mut dyn FnMut() -> io::Result<usize>) -> io::Result<usize>;

impl Output {
    /// Is nothing left to be written?
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_none() && self.written == self.bytes.len()
    }

    /// Writes until the stream takes no more or the endpoint has no more to say; how many bytes that were.
    ///
    /// # Errors
    /// The stream's.
    pub(super) fn write(
        &mut self,
        endpoint: &mut (impl ConnectionHandler + ?Sized),
        now: Time,
        socket: &impl AsFd,
        attempt: Attempt<'_>,
    ) -> Result<usize, CloseReason> {
        let mut written = 0;
        loop {
            if self.is_empty() {
                self.bytes.clear();
                self.written = 0;
                self.body = endpoint.transmit(now, &mut self.bytes, ENOUGH, true);
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
                _ => self.move_body(endpoint, socket, &mut *attempt),
            };
            match moved {
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves what the socket takes at once of what was lent. Where the file does not allow that, it is read. Where it can
    /// not be read either, zeros go in its place: the peer waits for so many bytes, and is told behind them.
    fn move_body(
        &mut self,
        endpoint: &mut (impl ConnectionHandler + ?Sized),
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
                endpoint.body_failed(body.transfer(), reason);
            }
        }
        if refused || body.left() == 0 {
            self.body = None;
        }
        Ok(moved)
    }
}

/// Is it about the file, and not about the socket?
fn is_the_files(error: &io::Error) -> bool {
    let codes = [Errno::IO, Errno::INVAL, Errno::NOSYS, Errno::OVERFLOW].map(Errno::raw_os_error);
    error.kind() == ErrorKind::UnexpectedEof || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// What is on its way from a stream to an endpoint.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// The last read was a large one: there is much to say.
    busy: bool,
    /// So many bytes are to be there before the kernel tells of them; 0 for as many as there are.
    mark: usize,
    /// Somebody looks, and the kernel need not tell.
    hushed: bool,
    spare: Arc<Spare>,
}

#[derive(Debug, Default)]
struct Spare(Mutex<Vec<AlignedBuf>>);

impl Input {
    /// Reads once; how many bytes, and 0 if there was nothing to read ([`ErrorKind::WouldBlock`]).
    ///
    /// # Errors
    /// The stream's end or failure, or the rule that the peer broke.
    pub(super) fn read(
        &mut self,
        endpoint: &mut (impl ConnectionHandler + ?Sized),
        now: Time,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, CloseReason> {
        let (bytes, n, full) = if self.busy {
            let mut lent = Lent { buffer: self.spare.take(), spare: self.spare.clone() };
            let Some(n) = once(&mut lent.buffer, &mut read)? else { return Ok(0) };
            let full = n == lent.buffer.len();
            (Bytes::from_owner(lent).slice(..n), n, full)
        } else {
            let mut buffer = vec![0; SMALL];
            let Some(n) = once(&mut buffer, &mut read)? else { return Ok(0) };
            buffer.truncate(n);
            (Bytes::from(buffer), n, n == SMALL)
        };
        self.busy = full || self.busy && n > SMALL;
        endpoint.receive(now, bytes)?;
        Ok(n)
    }

    /// Has the kernel tell only when the payload that is `due` is there, or as much of it as is read at once: it comes in
    /// pieces, and to be woken for each takes longer than to read it. What is there can be read all the same.
    pub(super) fn mark(&mut self, socket: &impl AsFd, due: impl FnOnce() -> u64) {
        let mark = match self.busy.then(due) {
            _ if self.hushed => HUSHED,
            Some(due) if due >= WORTH => usize::try_from(due).unwrap_or(LARGE).min(LARGE),
            _ => 0,
        };
        // Where the system does not know that, it tells of every piece.
        if mark != self.mark && Mark.set(socket, &mark.max(1)).is_ok() {
            self.mark = mark;
        }
    }

    /// Has the kernel not tell of anything, or tell again of what is there, too.
    pub(super) fn suppress_readiness(&mut self, socket: &impl AsFd, hushed: bool, due: impl FnOnce() -> u64) {
        if std::mem::replace(&mut self.hushed, hushed) != hushed {
            self.mark(socket, due);
        }
    }

    /// May so much be there as the kernel would tell of, where it does not?
    pub(super) fn has_input(&self, socket: &impl AsFd, due: u64) -> bool {
        let due = due.clamp(1, LARGE as u64);
        // Else one read tells as well.
        !self.hushed || rustix::io::ioctl_fionread(socket).is_ok_and(|there| there >= due)
    }

    /// May something be there that the kernel has not told of?
    pub(super) fn has_mark(&self) -> bool {
        self.mark > 0
    }

    /// The connection has been idle for a while: it keeps nothing.
    pub(super) fn release(&mut self) {
        self.busy = false;
        self.spare.clear();
    }
}

/// Reads at least a byte; `None` where there is none yet.
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
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        });
    }

    fn clear(&self) {
        self.with(|spare| *spare = Vec::new());
    }
}

/// A large buffer that is read from; dropped, it is spare again.
struct Lent {
    buffer: AlignedBuf,
    spare: Arc<Spare>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
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
    use crate::io::{OutgoingTransfers, Source};

    /// Notes what it is told was not moved.
    #[derive(Default)]
    struct Coalesce(Vec<RequestError>);

    impl ConnectionHandler for Coalesce {
        fn transmit(&mut self, _: Time, _: &mut Vec<u8>, _: usize, _: bool) -> Option<FileSlice> {
            None
        }
        fn body_failed(&mut self, _: TransferId, reason: RequestError) {
            self.0.push(reason);
        }
        fn receive(&mut self, _: Time, _: Bytes) -> Result<(), PeerError> {
            Ok(())
        }
        fn wants_input(&self) -> bool {
            true
        }
        fn payload_due(&self) -> u64 {
            0
        }
        fn poll_timeout(&self) -> Option<Time> {
            None
        }
        fn handle_timeout(&mut self, _: Time) -> Result<(), PeerError> {
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

    /// What is to be written of ten bytes that were lent of a file, which has so many when they are moved, to where the
    /// kernel moves nothing.
    fn moved_where_that_is_refused(len: u64) -> (Vec<u8>, Coalesce, bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789abcdef").unwrap();
        let (transfer, mut outlets) = (TransferId(1), OutgoingTransfers::default());
        outlets.insert(transfer, Source::file(File::open(&path).unwrap(), 16));
        let body = outlets.give(Slice { transfer, offset: 2, len: 10 }, &mut Vec::new(), true).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();

        // Nothing can be moved to the end of a file, wherever that is.
        let end = File::options().append(true).create(true).open(dir.path().join("end")).unwrap();
        let (mut output, mut told) = (Output { body, ..Output::default() }, Coalesce::default());
        output.move_body(&mut told, &end, &mut |attempt| attempt()).unwrap();
        (output.bytes, told, output.body.is_none())
    }

    #[test]
    fn what_the_kernel_does_not_move_is_read() {
        let (bytes, told, done) = moved_where_that_is_refused(16);
        assert_eq!((&bytes[..], told.0.len(), done), (&b"23456789ab"[..], 0, true));
    }

    #[test]
    fn what_can_not_be_read_either_is_zeros_and_the_reason_is_told() {
        let (bytes, told, done) = moved_where_that_is_refused(7);
        assert_eq!((&bytes[..], done), (&[0; 10][..], true));
        assert!(
            matches!(&told.0[..], [RequestError::Source { detail }] if detail.contains("shorter")),
            "{:?}",
            told.0
        );
    }

    #[test]
    fn a_crowd_can_wait_at_the_door_before_anybody_is_let_in() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_accept_backlog(&listener).unwrap();
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
        let most = most.map_or(128, |most| most.trim().parse().unwrap());
        let address = listener.local_addr().unwrap();
        // Who is not let wait does not get through here at all.
        let patience = Duration::from_secs(20);
        let connect = |_| TcpStream::connect_timeout(&address, patience).unwrap();
        let crowd: Vec<TcpStream> = (0..most.min(400)).map(connect).collect();
        assert!(crowd.len() >= 128);
    }
}
