//! A client on `async-io`: the calls of a `Session`, driven by a future that has a socket and a
//! timer.
//!
//! [`Session`] makes calls and fills the cache. [`ConnectionIo`] reads and writes. The future below
//! adds what the runtime knows: whether the socket is ready, and when the deadline has passed. It
//! runs on any executor.
//!
//!     cargo run -p blobferry-examples --bin async_io

mod support;

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io::Read;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};

use async_io::{Async, Timer};
use blobferry_cache::{Cache, CacheConfig};
use blobferry_session::client::{Addresses, ClientConfig, Handler, Session};
use blobferry_session::io::{CloseReason, ConnectionIo};
use futures_lite::future::block_on;
use futures_util::task::AtomicWaker;

use support::{ExampleServer, digest_of};

/// Wakes the driver when the session has something to send.
#[derive(Default)]
struct Wakeup {
    pending: AtomicBool,
    task: AtomicWaker,
}

impl Wakeup {
    fn wake(&self) {
        self.pending.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}

/// Drives one connection to its end.
struct Driver<'a> {
    stream: &'a Async<TcpStream>,
    io: &'a mut ConnectionIo<Handler>,
    wakeup: &'a Wakeup,
    timer: Timer,
}

impl Driver<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<CloseReason> {
        // First the waker, then the work: a wake-up during the work is not lost.
        self.wakeup.task.register(context.waker());
        loop {
            match self.turn(context) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(reason) => return Poll::Ready(reason),
            }
        }
    }

    /// Runs one turn, and returns whether another one may find something to do. If not, a later
    /// event wakes the task.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, CloseReason> {
        let stream = self.stream;
        // The socket is non-blocking: operations return `WouldBlock` themselves.
        self.io.write(stream, |write| write())?;
        if self.io.wants_input() && self.io.read(|buffer| stream.get_ref().read(buffer))? {
            return Ok(true);
        }
        if self.wakeup.pending.swap(false, Ordering::SeqCst) {
            return Ok(true);
        }
        // Every call may change the deadline, so the timer is set before each sleep.
        if let Some(deadline) = self.io.deadline() {
            self.timer.set_at(deadline);
            if Pin::new(&mut self.timer).poll(context).is_ready() {
                self.io.timeout(stream)?;
                return Ok(true);
            }
        }
        let readable = self.io.wants_input() && stream.poll_readable(context).is_ready();
        let writable = self.io.has_output() && stream.poll_writable(context).is_ready();
        Ok(readable || writable)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let server = ExampleServer::start()?;
    let cache = Cache::open(server.home.path().join("async_io"), CacheConfig::default())?;
    // Without addresses the session ends with its first connection.
    let session = Session::new(cache, &ClientConfig::default(), Addresses::none(), 0);

    // A call is queued at once, and sent when the driver runs. This one ends the session when the
    // blob is there.
    let (loaded, result) = mpsc::channel();
    let ending = session.clone();
    session.load_blob(server.blob, None, move |blob| {
        let _ = loaded.send(blob); // the receiver lives until the end of `main`
        ending.goodbye();
    });

    let reason = block_on(async {
        let stream = Async::<TcpStream>::connect(server.address).await?;
        let wakeup = Arc::new(Wakeup::default());
        let mut io = session.connect(&stream, {
            let wakeup = wakeup.clone();
            move || wakeup.wake()
        })?;
        let (io, timer) = (&mut io, Timer::never());
        let mut driver = Driver { stream: &stream, io, wakeup: &wakeup, timer };
        let reason = poll_fn(|context| driver.poll(context)).await;
        // Before the `ConnectionIo` is dropped.
        session.lost(&reason);
        Ok::<_, std::io::Error>(reason)
    })?;
    assert!(matches!(reason, CloseReason::Finished), "{reason}");

    let cached = result.recv()??;
    server.check(cached.path(), digest_of(cached.path())?)?;
    server.stop();
    Ok(())
}
