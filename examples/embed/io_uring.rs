//! A download on an io_uring, whose buffers belong to the kernel while it works on them.
//!
//! The loop has two kinds of operations in flight: one receive, and a write to the file for each
//! other buffer. The few bytes that the client sends are written with `write`. The machine says
//! what the next bytes are before they are received, so a buffer goes from the socket to the file
//! without a copy. [`Slice`] is `Copy` and borrows nothing, so each write keeps its own. The client
//! reports bytes as stored when their write has *completed*: only then the server gets credit.
//!
//! If the kernel has no io_uring, or does not allow it (as in many containers), the program prints
//! this and ends.
//!
//!     cargo run -p blobferry-examples --bin io_uring

mod support;

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use blobferry_protocol::client::{Connection, Event};
use blobferry_protocol::{BlobId, Config, Digest, Expect, Request, Slice, Time, TransferEvent};
use compio::buf::{self, BufResult, IntoInner, IoBuf};
use compio::driver::op::{Recv, RecvFlags, WriteAt};
use compio::driver::{Key, OpCode, Proactor, PushEntry};

use support::ExampleServer;

/// Buffers, whatever the size of the blob. While all of them are being written, the client receives
/// nothing.
const BUFFERS: usize = 4;
/// The size of a buffer in bytes.
const BUFFER: usize = 64 << 10;

/// A part of a buffer, which it owns.
type Part = buf::Slice<Vec<u8>>;
/// An operation in flight, or its result. It owns the operation's buffer.
type InFlight<T> = Option<PushEntry<Key<T>, BufResult<usize, T>>>;
type Fallible<T> = Result<T, Box<dyn Error>>;

/// Bytes of a transfer that are being written to the file.
struct Write {
    slice: Slice,
    operation: InFlight<WriteAt<Part, Arc<File>>>,
}

/// The machine, and what it lacks.
struct Download {
    machine: Connection,
    ring: Proactor,
    epoch: Instant,
    socket: Arc<TcpStream>,
    file: Arc<File>,
    /// Buffers without an operation.
    spare: Vec<Vec<u8>>,
    receiving: InFlight<Recv<Part, Arc<TcpStream>>>,
    /// In the order of the file.
    writing: VecDeque<Write>,
    /// The digest of the whole blob. It follows the last byte.
    digest: Option<Digest>,
}

fn main() -> Fallible<()> {
    let ring =
        Proactor::new().inspect_err(|error| println!("skipped: the kernel allows no io_uring: {error}"));
    let Ok(ring) = ring else { return Ok(()) };
    let server = ExampleServer::start()?;
    let stream = TcpStream::connect(server.address)?;
    stream.set_nodelay(true)?;
    let path = server.home.path().join("download");
    let mut download = Download {
        machine: Connection::new(Time::ZERO, Config::default(), b""),
        ring,
        epoch: Instant::now(),
        socket: Arc::new(stream),
        file: Arc::new(File::create(&path)?),
        spare: (0..BUFFERS).map(|_| vec![0; BUFFER]).collect(),
        receiving: None,
        writing: VecDeque::new(),
        digest: None,
    };
    let digest = download.run(server.blob)?;
    println!("{BUFFERS} buffers of {BUFFER} bytes have carried it from the socket to the file");
    server.check(&path, digest)?;
    server.stop();
    Ok(())
}

impl Download {
    /// Runs until the digest has arrived and all bytes are in the file.
    fn run(&mut self, blob: BlobId) -> Fallible<Digest> {
        loop {
            let now = Time(self.epoch.elapsed());
            self.submit(now)?;
            if self.complete(now)? {
                self.events(blob)?;
            } else if let (Some(digest), true) = (self.digest, self.writing.is_empty()) {
                return Ok(digest);
            } else {
                // Submits the pushed operations, and waits for a completion or the machine's
                // timeout.
                let wait = self.machine.poll_timeout().map(|at| at.since(now));
                match self.ring.poll(wait) {
                    Err(error) if !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                        return Err(error.into());
                    }
                    _ => self.machine.handle_timeout(Time(self.epoch.elapsed()))?,
                }
            }
        }
    }

    /// Sends the machine's output, and pushes a receive if a buffer is free.
    fn submit(&mut self, now: Time) -> io::Result<()> {
        // This client uploads nothing, so heads come without bodies.
        let mut head = Vec::new();
        while self.machine.poll_transmit(now, &mut head).is_some() {}
        (&*self.socket).write_all(&head)?;
        // One receive at a time: the machine knows what comes next only after it has handled this
        // one.
        if self.receiving.is_none()
            && self.digest.is_none()
            && let Some(buffer) = self.spare.pop()
        {
            let most = match self.machine.expect() {
                Expect::Control { max } => max,
                Expect::Payload(slice) => slice.len as usize,
            };
            let receive =
                Recv::new(self.socket.clone(), buffer.slice(..most.min(BUFFER)), RecvFlags::empty());
            self.receiving = Some(self.ring.push(receive));
        }
        Ok(())
    }

    /// Takes completed operations. Returns whether there were any.
    fn complete(&mut self, now: Time) -> Fallible<bool> {
        let mut any = false;
        if let Some((n, part)) = take(&mut self.ring, &mut self.receiving)? {
            any = true;
            self.received(now, n, part)?;
        }
        // Writes complete in any order. The machine needs the offset below which no byte is
        // missing, so the oldest write is taken first.
        while let Some(Write { slice, operation }) = self.writing.front_mut()
            && let Some((n, part)) = take(&mut self.ring, operation)?
        {
            any = true;
            if n == 0 {
                return Err("the file takes no more".into());
            }
            slice.offset += n as u64;
            slice.len -= n as u64;
            self.machine.stored(slice.transfer, slice.offset)?;
            if slice.len > 0 {
                let rest = WriteAt::new(self.file.clone(), slice.offset, part.slice(n..).flatten());
                *operation = Some(self.ring.push(rest));
            } else {
                self.writing.pop_front();
                self.spare.push(part.into_inner());
            }
        }
        Ok(any)
    }

    /// Passes control to the machine, and pushes a write of payload from the buffer in which it has
    /// arrived.
    fn received(&mut self, now: Time, n: usize, part: Part) -> Fallible<()> {
        if n == 0 {
            return Err("the server closed the connection".into());
        }
        match self.machine.expect() {
            Expect::Control { .. } => {
                self.machine.handle_control(now, &part[..n])?;
                self.spare.push(part.into_inner());
            }
            Expect::Payload(slice) => {
                self.machine.payload_moved(now, n as u64)?;
                let write = WriteAt::new(self.file.clone(), slice.offset, part.into_inner().slice(..n));
                let slice = Slice { len: n as u64, ..slice };
                self.writing.push_back(Write { slice, operation: Some(self.ring.push(write)) });
            }
        }
        Ok(())
    }

    fn events(&mut self, blob: BlobId) -> Fallible<()> {
        while let Some(event) = self.machine.poll_event() {
            match event {
                Event::Connected(_) => {
                    self.machine.request(Request::SendBlob { blob, from: 0, upto: u64::MAX })?;
                }
                Event::Transfer(TransferEvent::Stopped { digest, .. }) => self.digest = Some(digest),
                Event::Transfer(TransferEvent::Aborted { reason, .. }) => return Err(reason.into()),
                Event::Reply { result: Err(error), .. } => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns an operation's number of bytes and its buffer, if it is complete.
fn take<T: OpCode + IntoInner<Inner = Part>>(
    ring: &mut Proactor,
    slot: &mut InFlight<T>,
) -> io::Result<Option<(usize, Part)>> {
    let entry = match slot.take() {
        Some(PushEntry::Pending(key)) => ring.pop(key),
        Some(ready) => ready,
        None => return Ok(None),
    };
    match entry {
        PushEntry::Ready(BufResult(n, operation)) => Ok(Some((n?, operation.into_inner()))),
        pending => {
            *slot = Some(pending);
            Ok(None)
        }
    }
}
