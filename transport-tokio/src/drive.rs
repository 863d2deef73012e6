//! The loop of one connection, the same for both ends: bytes between a socket and an [`Endpoint`], and its timer.

use std::io;
use std::time::{Duration, Instant};

use blobferry_cache::carry::Endpoint;
use blobferry_protocol::{PeerError, Time};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::input::Input;

/// Bytes that are taken from the endpoint before they are written: one chunk of payload, and small messages
/// between two of them.
const ENOUGH: usize = 64 << 10;
/// Bytes that the kernel may hold unsent: more would only make small messages wait behind them.
const NOT_SENT: u32 = 256 << 10;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// Everything that was to be said was said.
    #[error("the conversation was over")]
    Finished,
    /// The peer closed the socket.
    #[error("the peer closed the connection")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The peer broke a rule, or is gone.
    #[error("{0}")]
    Peer(#[from] PeerError),
}

/// A moment as the machines count them: since the connection began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> Time {
        Time(self.0.elapsed())
    }

    fn instant(self, time: Time) -> tokio::time::Instant {
        // A time beyond what the clock can count is as good as never.
        let never = Duration::from_secs(60 * 60 * 24 * 365);
        (self.0.checked_add(time.0).unwrap_or(self.0 + never)).into()
    }
}

/// Makes a socket fit for small messages between large ones.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(NOT_SENT)?;
    Ok(())
}

/// Drives one connection to its end. `woken` is notified whenever the endpoint has something new to send.
pub(crate) async fn drive(
    stream: &TcpStream,
    clock: Clock,
    endpoint: &mut dyn Drivable,
    woken: &Notify,
) -> Ended {
    let mut output = Output::default();
    let mut input = Input::default();
    loop {
        if let Err(ended) = output.write(stream, clock, endpoint) {
            return ended;
        }
        if output.is_empty() && endpoint.is_finished() {
            return Ended::Finished;
        }
        let timeout = endpoint.poll_timeout().map(|time| clock.instant(time));
        let wants_input = endpoint.wants_input();
        let turn = tokio::select! {
            ready = stream.readable(), if wants_input => ready.map(|()| Turn::Read),
            ready = stream.writable(), if !output.is_empty() => ready.map(|()| Turn::Write),
            () = woken.notified() => Ok(Turn::Write),
            () = until(timeout) => Ok(Turn::Timeout),
        };
        let result = match turn {
            Ok(Turn::Read) => input.read(stream).and_then(|bytes| match bytes {
                Some(bytes) => endpoint.receive(clock.now(), bytes).map_err(Ended::from),
                None => Ok(()),
            }),
            Ok(Turn::Write) => Ok(()),
            Ok(Turn::Timeout) => {
                input.release();
                endpoint.handle_timeout(clock.now()).map_err(Ended::from)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(ended) = result {
            // What was said before the end may be worth hearing: why the peer is sent away, for one.
            let _ = output.write(stream, clock, endpoint);
            return ended;
        }
    }
}

/// An endpoint in a task that may move between threads.
pub(crate) trait Drivable: Endpoint + Send {}
impl<E: Endpoint + Send> Drivable for E {}

enum Turn {
    Read,
    Write,
    Timeout,
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What is on its way to the socket.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
}

impl Output {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Writes until the socket takes no more or there is no more.
    fn write(&mut self, stream: &TcpStream, clock: Clock, endpoint: &mut dyn Drivable) -> Result<(), Ended> {
        loop {
            if self.is_empty() {
                self.bytes.clear();
                self.written = 0;
                endpoint.transmit(clock.now(), &mut self.bytes, ENOUGH);
                if self.bytes.is_empty() {
                    // An idle connection holds no buffer.
                    self.bytes = Vec::new();
                    return Ok(());
                }
            }
            match stream.try_write(self.bytes.get(self.written..).unwrap_or_default()) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
