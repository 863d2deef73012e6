//! A download whose payload is never in user space: `splice` moves it from the socket to a pipe,
//! and from the pipe to the file. The machine says how many of the next bytes are payload.
//!
//! Bytes in a user-space buffer cannot be spliced, so the client must not read payload by accident.
//! It reads at most the bytes that [`Expect::Control`] guarantees to be control. This costs two
//! small reads per message.
//!
//!     cargo run -p blobferry-examples --bin splice

mod support;

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Instant;

use blobferry_protocol::client::{Connection, Event};
use blobferry_protocol::{BlobId, Config, Digest, Expect, Request, Slice, Time, TransferEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use support::ExampleServer;

/// The bytes that were moved in each way.
#[derive(Default)]
struct Moved {
    read: u64,
    spliced: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let server = ExampleServer::start()?;
    let path = server.home.path().join("download");
    let mut stream = TcpStream::connect(server.address)?;
    stream.set_nodelay(true)?;

    let mut moved = Moved::default();
    let digest = download(&mut stream, server.blob, &File::create(&path)?, &mut moved)?;
    println!("{} bytes went from the socket to the file in the kernel", moved.spliced);
    println!("{} bytes were read into this process: heads and control", moved.read);
    // The payload was never in this process, so it is not hashed yet. `check` reads the file from
    // the page cache.
    server.check(&path, digest)?;
    server.stop();
    Ok(())
}

/// Downloads a blob into a file. Returns the digest that the server has sent.
fn download(
    stream: &mut TcpStream,
    blob: BlobId,
    file: &File,
    moved: &mut Moved,
) -> Result<Digest, Box<dyn Error>> {
    let epoch = Instant::now();
    let mut machine = Connection::new(Time::ZERO, Config::default(), b"");
    let pipe = pipe_with(PipeFlags::CLOEXEC)?;
    // One chunk fits. If the kernel refuses this size, a chunk takes more turns.
    let _ = fcntl_setpipe_size(&pipe.1, 256 << 10);
    loop {
        let now = Time(epoch.elapsed());
        send(&mut machine, stream, now)?;
        let readable = wait(&machine, stream, now)?;
        let now = Time(epoch.elapsed());
        match machine.expect() {
            _ if !readable => machine.handle_timeout(now)?,
            Expect::Control { max } => moved.read += receive(&mut machine, stream, now, max)?,
            Expect::Payload(slice) => {
                let n = splice_payload(stream, &pipe, file, slice)?;
                moved.spliced += n;
                machine.payload_moved(now, n)?;
                machine.stored(slice.transfer, slice.offset + n)?;
            }
        }
        // Events come before the next payload: a transfer begins with one.
        while let Some(event) = machine.poll_event() {
            match event {
                Event::Connected(_) => {
                    machine.request(Request::SendBlob { blob, from: 0, upto: u64::MAX })?;
                }
                Event::Transfer(TransferEvent::Stopped { digest, .. }) => return Ok(digest),
                Event::Transfer(TransferEvent::Aborted { reason, .. }) => return Err(reason.into()),
                Event::Reply { result: Err(error), .. } => return Err(error.into()),
                _ => {}
            }
        }
    }
}

/// Sends the machine's output. This client uploads nothing, so heads come without bodies.
fn send(machine: &mut Connection, stream: &mut TcpStream, now: Time) -> io::Result<()> {
    let mut head = Vec::new();
    while machine.poll_transmit(now, &mut head).is_some() {}
    stream.write_all(&head)
}

/// Waits for input. Returns `false` if the machine's timeout expires first.
fn wait(machine: &Connection, stream: &TcpStream, now: Time) -> Result<bool, Box<dyn Error>> {
    let timeout = machine.poll_timeout().map(|at| Timespec::try_from(at.since(now))).transpose()?;
    match poll(&mut [PollFd::new(stream, PollFlags::IN)], timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads at most `max` bytes, which are control. Returns their number.
fn receive(
    machine: &mut Connection,
    stream: &mut TcpStream,
    now: Time,
    max: usize,
) -> Result<u64, Box<dyn Error>> {
    let mut buffer = [0; 4096];
    let wanted = max.min(buffer.len());
    let n = stream.read(&mut buffer[..wanted])?;
    if n == 0 {
        return Err("the server closed the connection".into());
    }
    let used = machine.handle_control(now, &buffer[..n])?;
    assert_eq!(used, n, "the machine has guaranteed that all of it is control");
    Ok(n as u64)
}

/// Moves the payload that has arrived to its place in the file: at most the slice. Returns the
/// number of bytes.
fn splice_payload(
    stream: &TcpStream,
    (from_pipe, to_pipe): &(OwnedFd, OwnedFd),
    file: &File,
    slice: Slice,
) -> Result<u64, Box<dyn Error>> {
    let n = splice(stream, None, to_pipe, None, slice.len as usize, SpliceFlags::MOVE)?;
    if n == 0 {
        return Err("the server closed the connection".into());
    }
    let (mut at, end) = (slice.offset, slice.offset + n as u64);
    while at < end {
        let rest = (end - at) as usize;
        splice(from_pipe, None, file, Some(&mut at), rest, SpliceFlags::MOVE)?; // advances `at`
    }
    Ok(n as u64)
}
