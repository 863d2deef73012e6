//! The driver of one connection, the same for clients and servers: a socket's readiness, wake-ups, and a timer.
//!
//! The driver is one future that is polled as a whole. It registers nothing anew that is registered already. Its timer
//! moves only when the deadline comes nearer: most deadlines move later with every byte that arrives, and then the timer
//! fires too early.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::thread;

use blobferry_session::io::{CloseReason, ConnectionHandler, ConnectionIo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::wakeup::TaskWaker;

/// Reads in one turn. Each takes at most 256 KiB, so another connection waits for at most 1 MiB of this one.
const READS: usize = 4;
/// Writes in one turn. Each sends about 64 KiB, or one chunk of a file.
const WRITES: usize = 8;
/// Turns in one poll, before the other tasks of the thread have theirs.
const TURNS: usize = 4;
/// Polls for a small answer, before the task sleeps.
const MAX_POLLS: u32 = 50;
/// Polls for more of a large blob, before the other tasks of the thread have their turn: about 50 µs.
const MAX_YIELDS: u32 = 64;

/// Drives one connection to its end. `waker` is woken whenever the handler has something new to send. While
/// `expects_small_answer` returns `true`, the task spins before it sleeps.
pub(crate) async fn drive<E: ConnectionHandler + Send>(
    stream: &mut TcpStream,
    io: &mut ConnectionIo<E>,
    waker: &TaskWaker,
    expects_small_answer: impl Fn() -> bool,
) -> CloseReason {
    let timer = pin!(sleep_until(Instant::now()));
    let mut driver = Driver::new(stream, io, waker, expects_small_answer, timer);
    poll_fn(|context| driver.poll(context)).await
}

struct Driver<'a, E, S> {
    stream: &'a mut TcpStream,
    io: &'a mut ConnectionIo<E>,
    waker: &'a TaskWaker,
    expects_small_answer: S,
    timer: Pin<&'a mut Sleep>,
    /// When the timer fires, if it is set.
    timer_at: Option<Instant>,
    /// Something has happened, and there may be output.
    dirty: bool,
    /// How many polls for a small answer are left.
    polls_left: u32,
    /// The task spins, and has not slept since.
    spinning: bool,
    probed: ProbedReadiness,
}

/// The readiness that the socket itself has reported in this turn.
#[derive(Clone, Copy, Default)]
struct ProbedReadiness {
    readable: bool,
    writable: bool,
}

impl<'a, E: ConnectionHandler, S: Fn() -> bool> Driver<'a, E, S> {
    fn new(
        stream: &'a mut TcpStream,
        io: &'a mut ConnectionIo<E>,
        waker: &'a TaskWaker,
        expects_small_answer: S,
        timer: Pin<&'a mut Sleep>,
    ) -> Driver<'a, E, S> {
        let (timer_at, dirty, polls_left, spinning) = (None, true, 0, false);
        let probed = ProbedReadiness::default();
        Driver {
            stream,
            io,
            waker,
            expects_small_answer,
            timer,
            timer_at,
            dirty,
            polls_left,
            spinning,
            probed,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<CloseReason> {
        self.waker.set_awake();
        if std::mem::take(&mut self.spinning) {
            self.probe();
        }
        for _ in 0..TURNS {
            match self.turn(context) {
                Err(reason) => return Poll::Ready(reason),
                Ok(true) => self.polls_left = MAX_POLLS,
                Ok(false) if self.spin_for_more() => {}
                Ok(false) if self.waker.sleep(context) => {
                    self.schedule_spin(context);
                    return Poll::Pending;
                }
                Ok(false) => {}
            }
        }
        wake_behind_others(context);
        Poll::Pending
    }

    /// Spins for more of a large blob, and yields to other threads in between. If the runtime did this in its own rounds,
    /// it would wake its other threads again and again.
    fn spin_for_more(&mut self) -> bool {
        for _ in 0..MAX_YIELDS {
            if !self.io.should_spin() {
                return false;
            }
            self.io.suppress_readiness(self.stream, true);
            thread::yield_now();
            self.probe();
            if self.probed.readable || self.probed.writable || self.waker.is_pending() {
                return true;
            }
        }
        false
    }

    /// Reads the readiness from the socket. The runtime may not know it yet, if its thread that waits for events sleeps.
    fn probe(&mut self) {
        let readable = self.io.wants_input() && self.io.has_input(self.stream);
        let writable = self.io.has_output() && is_writable(self.stream);
        self.probed = ProbedReadiness { readable, writable };
    }

    /// Wakes the task again to spin, if more will be there soon; otherwise the task sleeps. To wake a thread whose
    /// processor sleeps takes about as long as a small request.
    fn schedule_spin(&mut self, context: &mut Context<'_>) {
        let small = self.polls_left > 0 && (self.expects_small_answer)();
        self.polls_left -= u32::from(small);
        self.spinning = small || self.io.should_spin();
        if self.spinning {
            wake_behind_others(context);
        } else {
            self.io.suppress_readiness(self.stream, false);
        }
    }

    /// Runs one turn, and returns whether another one may find something to do. If not, a later event wakes the task.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, CloseReason> {
        let (mut reads, wanted_input) = (0, self.io.wants_input());
        while reads < READS && self.is_readable(context) && self.read(context)? {
            reads += 1;
        }
        let woken = self.waker.take();
        if woken || reads > 0 || self.dirty || self.io.has_output() {
            self.dirty = false;
            self.write()?;
        }
        let wants_input_now = !wanted_input && self.io.wants_input();
        let can_write = self.io.has_output() && self.stream.poll_write_ready(context).is_ready();
        if woken || reads > 0 || wants_input_now || can_write {
            return Ok(true);
        }
        self.dirty = self.is_late(context);
        if self.dirty {
            self.io.timeout(&*self.stream)?;
        }
        Ok(self.dirty)
    }

    /// Returns whether the deadline has passed. If not, the task is woken when it does.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let Some(deadline) = self.io.deadline().map(Instant::from_std) else { return false };
        let sooner = self.timer_at.is_none_or(|at| deadline < at);
        if !sooner && self.timer.as_mut().poll(context).is_pending() {
            return false;
        }
        // The deadline has come nearer, or the timer has fired for one that has moved later.
        self.timer.as_mut().reset(deadline);
        self.timer_at = Some(deadline);
        let late = self.timer.as_mut().poll(context).is_ready();
        if late {
            self.timer_at = None;
        }
        late
    }

    /// Returns whether there may be input that the handler wants. If not, the task is woken when there is.
    fn is_readable(&mut self, context: &mut Context<'_>) -> bool {
        if !self.io.wants_input() {
            return false;
        }
        // Errors are found by reading. If the runtime reports readiness, the read must go through the runtime: otherwise
        // it would go on reporting readiness after the input is gone, and would not wake the task for more.
        let ready = self.stream.poll_read_ready(context).is_ready();
        self.probed.readable &= !ready;
        ready || self.probed.readable
    }

    fn read(&mut self, context: &mut Context<'_>) -> Result<bool, CloseReason> {
        let stream = &mut *self.stream;
        let probed = std::mem::take(&mut self.probed.readable);
        self.io.read(|buffer| {
            if probed {
                return Ok(rustix::io::read(&*stream, buffer)?);
            }
            let mut buffer = ReadBuf::new(buffer);
            match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                Poll::Ready(read) => read.map(|()| buffer.filled().len()),
                Poll::Pending => Err(ErrorKind::WouldBlock.into()),
            }
        })
    }

    fn write(&mut self) -> Result<(), CloseReason> {
        let (stream, mut writes) = (&*self.stream, 0);
        let probed = std::mem::take(&mut self.probed.writable);
        self.io.write(stream, |write| {
            if writes == WRITES {
                return Err(io::Error::from(ErrorKind::WouldBlock));
            }
            writes += 1;
            if probed { write() } else { stream.try_io(Interest::WRITABLE, write) }
        })
    }
}

fn is_writable(stream: &TcpStream) -> bool {
    // If this fails, the runtime reports readiness as always.
    let mut probe = [PollFd::new(stream, PollFlags::OUT)];
    poll(&mut probe, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Wakes the task after all others of the thread had their turn. An immediate wake-up would also wake another thread of
/// the runtime, in case that one can take the task.
fn wake_behind_others(context: &mut Context<'_>) {
    // The first poll is never ready.
    let _ = pin!(yield_now()).poll(context);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use blobferry_protocol::{PeerError, RequestError, Time, TransferId};
    use blobferry_session::io::FileSlice;
    use bytes::Bytes;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::sync::Notify;
    use tokio::time::timeout;

    use super::*;

    /// A handler that counts the bytes that arrive.
    #[derive(Default)]
    struct Counter(usize);

    /// Bytes of payload that are expected. Input behind them is not payload.
    const PAYLOAD: usize = 200_000;

    impl ConnectionHandler for Counter {
        fn transmit(&mut self, _: Time, _: &mut Vec<u8>, _: usize, _: bool) -> Option<FileSlice> {
            None
        }
        fn body_failed(&mut self, _: TransferId, _: RequestError) {}
        fn receive(&mut self, _: Time, bytes: Bytes) -> Result<(), PeerError> {
            self.0 += bytes.len();
            Ok(())
        }
        fn wants_input(&self) -> bool {
            true
        }
        fn payload_due(&self) -> u64 {
            PAYLOAD.saturating_sub(self.0) as u64
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

    struct Woken(Notify);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn a_stale_readiness_does_not_suppress_the_wakeup() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        far.write_all(b"1").await.unwrap();
        near.readable().await.unwrap();
        // Read without the runtime's knowledge, as by a driver that probes before the runtime reports.
        assert_eq!(rustix::io::read(&near, &mut [0; 8]), Ok(1));

        let mut io = ConnectionIo::begin(&near, |_| Counter::default()).unwrap();
        let (waker, timer) = (TaskWaker::default(), pin!(sleep_until(Instant::now())));
        let mut driver = Driver::new(&mut near, &mut io, &waker, || true, timer);
        (driver.dirty, driver.spinning) = (false, true);
        let woken = Arc::new(Woken(Notify::new()));
        let task = Waker::from(woken.clone());
        let mut context = Context::from_waker(&task);
        assert!(driver.poll(&mut context).is_pending());
        far.write_all(b"2").await.unwrap();
        timeout(Duration::from_secs(60), woken.0.notified()).await.expect("the task is woken");
        assert!(driver.poll(&mut context).is_pending());
        assert_eq!(driver.io.handler().0, 1);
    }

    #[tokio::test]
    async fn a_task_that_has_spun_is_woken_by_later_input() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        let mut io = ConnectionIo::begin(&near, |_| Counter::default()).unwrap();
        let (waker, timer) = (TaskWaker::default(), pin!(sleep_until(Instant::now())));
        let mut driver = Driver::new(&mut near, &mut io, &waker, || false, timer);
        let (mut expected, time) = (0, Duration::from_secs(60));
        for sent in [PAYLOAD / 2, PAYLOAD / 2, 1, 1] {
            far.write_all(&vec![1; sent]).await.unwrap();
            expected += sent;
            // The driver is polled only after a wake-up, and sleeps in the end.
            let asleep = poll_fn(|context| {
                assert!(driver.poll(context).is_pending());
                let all = driver.io.handler().0 == expected;
                if all && !driver.spinning { Poll::Ready(()) } else { Poll::Pending }
            });
            timeout(time, asleep).await.expect("the task is woken");
        }
        drop(far);
        let reason = timeout(time, poll_fn(|context| driver.poll(context))).await.expect("the task is woken");
        assert!(matches!(reason, CloseReason::Closed), "{reason:?}");
    }
}
