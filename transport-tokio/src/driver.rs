//! The loop of one connection, the same for both ends: readiness of a socket, a bell, and a timer.
//!
//! It is written as one future, polled as a whole: nothing is registered anew that is registered already. The timer is
//! moved only when the deadline comes nearer; most deadlines move on with every byte that arrives, and are looked at too
//! early then.

use std::future::poll_fn;
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

/// Reads in one turn. One takes at most 256 KiB, so others wait for at most a megabyte of anybody's.
const READS: usize = 4;
/// Writes in one turn. One gives about 64 KiB, or a chunk.
const WRITES: usize = 8;
/// Turns before the other tasks of the thread have theirs.
const TURNS: usize = 4;
/// How often a task looks for what will soon be there.
const LOOKS: u32 = 50;
/// How often it looks for more of a large blob before the other tasks of the thread have their turn: for some 50 µs.
const STRETCH: u32 = 64;

/// Drives one connection to its end. The bell rings whenever the endpoint has something new to send. While something will
/// arrive `soon`, the task looks for it for a moment before it sleeps.
pub(crate) async fn drive<E: ConnectionHandler + Send>(
    stream: &mut TcpStream,
    carrier: &mut ConnectionIo<E>,
    bell: &TaskWaker,
    soon: impl Fn() -> bool,
) -> CloseReason {
    let timer = pin!(sleep_until(Instant::now()));
    let mut driver = Driver::new(stream, carrier, bell, soon, timer);
    poll_fn(|context| driver.poll(context)).await
}

struct Driver<'a, E, S> {
    stream: &'a mut TcpStream,
    carrier: &'a mut ConnectionIo<E>,
    bell: &'a TaskWaker,
    soon: S,
    timer: Pin<&'a mut Sleep>,
    /// When the timer fires, where it still will.
    at: Option<Instant>,
    /// Something has happened, and there may be something to send.
    anew: bool,
    /// It may look so often before it sleeps.
    looks: u32,
    /// It looks, and has not slept since.
    looking: bool,
    /// What the socket itself said in this turn.
    there: ProbedReadiness,
}

/// What can be done with the socket at once, as the socket says.
#[derive(Clone, Copy, Default)]
struct ProbedReadiness {
    readable: bool,
    writable: bool,
}

impl<'a, E: ConnectionHandler, S: Fn() -> bool> Driver<'a, E, S> {
    fn new(
        stream: &'a mut TcpStream,
        carrier: &'a mut ConnectionIo<E>,
        bell: &'a TaskWaker,
        soon: S,
        timer: Pin<&'a mut Sleep>,
    ) -> Driver<'a, E, S> {
        let (at, anew, looks, looking, there) = (None, true, 0, false, ProbedReadiness::default());
        Driver { stream, carrier, bell, soon, timer, at, anew, looks, looking, there }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<CloseReason> {
        self.bell.awake();
        if std::mem::take(&mut self.looking) {
            self.ask();
        }
        for _ in 0..TURNS {
            match self.turn(context) {
                Err(ended) => return Poll::Ready(ended),
                Ok(true) => self.looks = LOOKS,
                Ok(false) if self.sees_more() => {}
                Ok(false) if self.bell.sleep(context) => {
                    self.look(context);
                    return Poll::Pending;
                }
                Ok(false) => {}
            }
        }
        wake_behind_others(context);
        Poll::Pending
    }

    /// Looks for more of a large blob for a moment, and lets other threads go first. To leave that to the runtime's own rounds
    /// would be to wake its other threads again and again.
    fn sees_more(&mut self) -> bool {
        for _ in 0..STRETCH {
            if !self.carrier.should_spin() {
                return false;
            }
            self.carrier.suppress_readiness(self.stream, true);
            thread::yield_now();
            self.ask();
            if self.there.readable || self.there.writable || self.bell.has_rung() {
                return true;
            }
        }
        false
    }

    /// Asks the socket: the thread of the runtime that hears of events may be another one, and asleep.
    fn ask(&mut self) {
        let readable = self.carrier.wants_input() && self.carrier.has_input(self.stream);
        let writable = self.carrier.has_output() && is_writable(self.stream);
        self.there = ProbedReadiness { readable, writable };
    }

    /// Has the task woken again to look for more, where there soon will be: to wake a thread whose processor has gone to sleep
    /// takes as long as a small request does. Else it sleeps.
    fn look(&mut self, context: &mut Context<'_>) {
        let small = self.looks > 0 && (self.soon)();
        self.looks -= u32::from(small);
        self.looking = small || self.carrier.should_spin();
        if self.looking {
            wake_behind_others(context);
        } else {
            self.carrier.suppress_readiness(self.stream, false);
        }
    }

    /// One turn; whether another may find something to do. If not, what there may be later wakes the task.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, CloseReason> {
        let (mut reads, wanted) = (0, self.carrier.wants_input());
        while reads < READS && self.is_readable(context) && self.read(context)? {
            reads += 1;
        }
        let rung = self.bell.hear();
        if rung || reads > 0 || self.anew || self.carrier.has_output() {
            self.anew = false;
            self.write()?;
        }
        let wants = !wanted && self.carrier.wants_input();
        let writes = self.carrier.has_output() && self.stream.poll_write_ready(context).is_ready();
        if rung || reads > 0 || wants || writes {
            return Ok(true);
        }
        self.anew = self.is_late(context);
        if self.anew {
            self.carrier.timeout(&*self.stream)?;
        }
        Ok(self.anew)
    }

    /// Whether the deadline has passed; if not, the task is woken when it does.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let Some(deadline) = self.carrier.deadline().map(Instant::from_std) else { return false };
        let sooner = self.at.is_none_or(|at| deadline < at);
        if !sooner && self.timer.as_mut().poll(context).is_pending() {
            return false;
        }
        // It is wanted sooner, or has fired for a deadline that has moved on.
        self.timer.as_mut().reset(deadline);
        self.at = Some(deadline);
        let late = self.timer.as_mut().poll(context).is_ready();
        if late {
            self.at = None;
        }
        late
    }

    /// Whether there may be something to read for who wants it; if not, the task is woken when there is.
    fn is_readable(&mut self, context: &mut Context<'_>) -> bool {
        if !self.carrier.wants_input() {
            return false;
        }
        // Errors are found by reading. What the runtime says is asked of the runtime, too: else it would go on saying so where
        // there is nothing any more, and wake nobody.
        let ready = self.stream.poll_read_ready(context).is_ready();
        self.there.readable &= !ready;
        ready || self.there.readable
    }

    fn read(&mut self, context: &mut Context<'_>) -> Result<bool, CloseReason> {
        let stream = &mut *self.stream;
        let there = std::mem::take(&mut self.there.readable);
        self.carrier.read(|buffer| {
            if there {
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
        let (stream, mut writes, there) = (&*self.stream, 0, std::mem::take(&mut self.there.writable));
        self.carrier.write(stream, |write| {
            if writes == WRITES {
                return Err(io::Error::from(ErrorKind::WouldBlock));
            }
            writes += 1;
            if there { write() } else { stream.try_io(Interest::WRITABLE, write) }
        })
    }
}

fn is_writable(stream: &TcpStream) -> bool {
    // Where that fails, the runtime tells as always.
    let mut asked = [PollFd::new(stream, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Has the task woken again when all others of the thread had their turn. If it was woken at once, another thread of the runtime
/// would be, too, in case it would rather have it.
fn wake_behind_others(context: &mut Context<'_>) {
    // It is never ready the first time.
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

    /// Counts what arrives.
    #[derive(Default)]
    struct Listener(usize);

    /// What is expected behind this is not payload.
    const PAYLOAD: usize = 200_000;

    impl ConnectionHandler for Listener {
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
    async fn who_has_looked_in_vain_is_woken_although_the_runtime_thought_that_there_was_something() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        far.write_all(b"1").await.unwrap();
        near.readable().await.unwrap();
        // Taken without the runtime's knowledge, as by one that has looked before the runtime has heard of it.
        assert_eq!(rustix::io::read(&near, &mut [0; 8]), Ok(1));

        let mut carrier = ConnectionIo::begin(&near, |_| Listener::default()).unwrap();
        let (bell, timer) = (TaskWaker::default(), pin!(sleep_until(Instant::now())));
        let mut driver = Driver::new(&mut near, &mut carrier, &bell, || true, timer);
        (driver.anew, driver.looking) = (false, true);
        let woken = Arc::new(Woken(Notify::new()));
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        assert!(driver.poll(&mut context).is_pending());
        far.write_all(b"2").await.unwrap();
        timeout(Duration::from_secs(60), woken.0.notified()).await.expect("it is woken");
        assert!(driver.poll(&mut context).is_pending());
        assert_eq!(driver.carrier.handler().0, 1);
    }

    #[tokio::test]
    async fn who_has_looked_for_more_of_a_large_blob_is_woken_by_what_comes_when_it_sleeps() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        let mut carrier = ConnectionIo::begin(&near, |_| Listener::default()).unwrap();
        let (bell, timer) = (TaskWaker::default(), pin!(sleep_until(Instant::now())));
        let mut driver = Driver::new(&mut near, &mut carrier, &bell, || false, timer);
        let (mut expected, patience) = (0, Duration::from_secs(60));
        for sent in [PAYLOAD / 2, PAYLOAD / 2, 1, 1] {
            far.write_all(&vec![1; sent]).await.unwrap();
            expected += sent;
            // It is polled only when it was woken, and sleeps in the end.
            let asleep = poll_fn(|context| {
                assert!(driver.poll(context).is_pending());
                let all = driver.carrier.handler().0 == expected;
                if all && !driver.looking { Poll::Ready(()) } else { Poll::Pending }
            });
            timeout(patience, asleep).await.expect("it is woken");
        }
        drop(far);
        let ended = timeout(patience, poll_fn(|context| driver.poll(context))).await.expect("it is woken");
        assert!(matches!(ended, CloseReason::Closed), "{ended:?}");
    }
}
