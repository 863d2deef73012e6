//! Transfers a blob between a client's and a server's machine, which share one thread and one event
//! loop.
//!
//! Each machine has a non-blocking `TcpStream`. The loop waits for both sockets with `poll(2)`,
//! until one is ready or the next timeout of a machine expires.
//!
//!     cargo run -p blobferry-examples --bin polling

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::{
    BlobId, Config, Digest, Oid, Request, RequestError, Slice, Tid, Time, TransferEvent, buffered, client,
    server,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

const BLOB: BlobId = BlobId { oid: Oid(1), tid: Tid(7) };
/// The size of the blob in bytes: larger than the window, so that the client must give credit.
const SIZE: usize = 8 << 20;
/// Bytes that an end reads at most, or buffers before it writes.
const BUFFER: usize = 64 << 10;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// One end of the connection: a machine and its socket.
struct End<S: Side> {
    machine: Connection<S>,
    stream: TcpStream,
    /// Bytes that the socket has not accepted yet.
    output: Vec<u8>,
}

impl<S: Side> End<S> {
    fn new(machine: Connection<S>, stream: TcpStream) -> io::Result<End<S>> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(End { machine, stream, output: Vec::new() })
    }

    /// Sends until the machine has nothing to send, or the socket accepts no more. `body` appends
    /// the bytes of a slice.
    fn send(
        &mut self,
        now: Time,
        mut body: impl FnMut(Slice, &mut Vec<u8>) -> Result<(), RequestError>,
    ) -> io::Result<()> {
        loop {
            buffered::transmit(&mut self.machine, now, &mut self.output, BUFFER, &mut body);
            if self.output.is_empty() {
                return Ok(());
            }
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads once. Returns no bytes if there is no input.
    fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        match self.stream.read(buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok(&buffer[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(&[]),
            Err(error) => Err(error),
        }
    }

    /// Returns what `poll(2)` waits for: input always, and room in the socket if output is left.
    fn interest(&self) -> PollFd<'_> {
        let output = if self.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        PollFd::new(&self.stream, PollFlags::IN | output)
    }
}

/// The client's end, and the blob as far as it has arrived.
struct Client {
    end: End<client::Client>,
    bytes: Vec<u8>,
    /// The digest of the whole blob. It follows the last byte.
    digest: Option<Digest>,
}

impl Client {
    fn send(&mut self, now: Time) -> io::Result<()> {
        self.end.send(now, |_, _| Err(RequestError::Source { detail: "this client has no uploads".into() }))
    }

    fn receive(&mut self, now: Time) -> Fallible<()> {
        let (mut events, mut stored, mut buffer) = (Vec::new(), None, [0; BUFFER]);
        let input = self.end.read(&mut buffer)?;
        let (on_event, bytes) = (|events: &mut Vec<_>, _: &mut _, event| events.push(event), &mut self.bytes);
        buffered::receive(&mut self.end.machine, now, input, &mut events, on_event, |_, slice, at| {
            bytes.extend_from_slice(&input[at]);
            stored = Some((slice.transfer, slice.offset + slice.len));
        })?;
        // This gives the server credit for more bytes.
        stored.map_or(Ok(()), |(transfer, upto)| self.end.machine.stored(transfer, upto))?;
        for event in events {
            match event {
                client::Event::Connected(_) => {
                    let request = Request::SendBlob { blob: BLOB, from: 0, upto: u64::MAX };
                    self.end.machine.request(request)?;
                }
                client::Event::Transfer(TransferEvent::Stopped { digest, .. }) => self.digest = Some(digest),
                client::Event::Transfer(TransferEvent::Aborted { reason, .. }) => return Err(reason.into()),
                client::Event::Reply { result: Err(error), .. } => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The server's end, and its only blob.
struct Server {
    end: End<server::Server>,
    blob: Vec<u8>,
}

impl Server {
    fn send(&mut self, now: Time) -> io::Result<()> {
        let blob = &self.blob;
        self.end.send(now, |slice, into| {
            let bytes = blob.get(slice.offset as usize..).and_then(|rest| rest.get(..slice.len as usize));
            into.extend_from_slice(bytes.ok_or(RequestError::Source { detail: "too short".into() })?);
            Ok(())
        })
    }

    fn receive(&mut self, now: Time) -> Fallible<()> {
        let (mut events, mut buffer) = (Vec::new(), [0; BUFFER]);
        let input = self.end.read(&mut buffer)?;
        let on_event = |events: &mut Vec<_>, _: &mut _, event| events.push(event);
        // The server accepts no uploads, so no payload arrives.
        buffered::receive(&mut self.end.machine, now, input, &mut events, on_event, |_, _, _| {})?;
        for event in events {
            match event {
                server::Event::Hello { .. } => self.end.machine.welcome(BLOB.tid)?,
                server::Event::Request { id, request: Request::SendBlob { blob: BLOB, .. } } => {
                    self.end.machine.start_blob(id.into(), self.blob.len() as u64, digest_of(&self.blob))?;
                }
                server::Event::Request { id, .. } => {
                    let what = "other requests".into();
                    self.end.machine.reply(id, Err(RequestError::Unsupported { what }))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

fn main() -> Fallible<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    let mut blob = vec![0; SIZE];
    blake3::Hasher::new().finalize_xof().fill(&mut blob);

    let (epoch, config) = (Instant::now(), Config::default());
    let end = End::new(client::Connection::new(Time::ZERO, config, b""), near)?;
    let mut client = Client { end, bytes: Vec::new(), digest: None };
    let end = End::new(server::Connection::new(Time::ZERO, config), far)?;
    let mut server = Server { end, blob };

    while client.digest.is_none() {
        let now = Time(epoch.elapsed());
        client.send(now)?;
        server.send(now)?;
        // Every call may change the timeouts, so the loop reads them again before each wait.
        let timeouts = [client.end.machine.poll_timeout(), server.end.machine.poll_timeout()];
        let timeout = timeouts.into_iter().flatten().min().map(|at| at.since(now));
        let timeout = timeout.map(Timespec::try_from).transpose()?;
        let mut sockets = [client.end.interest(), server.end.interest()];
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = sockets.map(|socket| !socket.revents().is_empty());
        let now = Time(epoch.elapsed());
        if ready[0] {
            client.receive(now)?;
        }
        if ready[1] {
            server.receive(now)?;
        }
        // These do nothing before their time.
        client.end.machine.handle_timeout(now)?;
        server.end.machine.handle_timeout(now)?;
    }
    assert_eq!(client.bytes.len(), SIZE);
    assert_eq!(client.digest, Some(digest_of(&client.bytes)));
    println!("one thread has sent and received all {SIZE} bytes; the digest is right");
    Ok(())
}
