//! A client in one thread, on `std::net::TcpStream` and `std::fs`: downloads a blob, uploads a new
//! revision of it, and loads that revision.
//!
//! This is the smallest run loop: it sends everything, then waits for input until the machine's
//! next timeout. It suits a command or a script. It stores and loads one after the other. A client
//! that does both at once must also read while it waits to write; otherwise both ends may wait for
//! each other.
//!
//!     cargo run -p blobferry-examples --bin blocking_std

mod support;

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use blobferry_protocol::client::{Connection, Event};
use blobferry_protocol::{
    BlobInfo, Config, Digest, Expect, Reply, Request, RequestError, RequestId, Revision, Slice, Time,
    TransferEvent, TxnId, TxnMeta,
};
use support::{ExampleServer, digest_of};

/// The machine, and what it lacks: a socket, a clock, and the files.
struct Client {
    machine: Connection,
    stream: TcpStream,
    epoch: Instant,
    /// Events that no call has handled yet.
    events: VecDeque<Event>,
    /// The files of the download and of the upload. This client has at most one of each at a time.
    sink: Option<File>,
    source: Option<File>,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Client, Box<dyn Error>> {
        let (stream, epoch, config) = (TcpStream::connect(address)?, Instant::now(), Config::default());
        stream.set_nodelay(true)?;
        // If the socket accepts no bytes for this long, the connection counts as dead.
        stream.set_write_timeout(Some(config.silence_limit))?;
        let machine = Connection::new(Time::ZERO, config, b"");
        let mut client = Client { machine, stream, epoch, events: VecDeque::new(), sink: None, source: None };
        while !client.machine.is_connected() {
            client.turn()?;
        }
        Ok(client)
    }

    fn now(&self) -> Time {
        Time(self.epoch.elapsed())
    }

    /// Runs one turn of the loop. When everything is sent, only input or a timeout can produce more
    /// output, so the client waits for one of them.
    fn turn(&mut self) -> Result<(), Box<dyn Error>> {
        self.send()?;
        // Every call may change the timeout, so the client reads it before each wait.
        let Some(timeout) = self.machine.poll_timeout() else { return Ok(()) };
        // A timeout of zero is an error for the socket.
        let wait = timeout.since(self.now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(wait))?;
        let mut buffer = [0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(n) => self.receive(&buffer[..n])?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        self.machine.handle_timeout(self.now())?; // does nothing before its time
        self.events.extend(std::iter::from_fn(|| self.machine.poll_event()));
        Ok(())
    }

    /// Sends heads from the machine, and bodies from the file.
    fn send(&mut self) -> io::Result<()> {
        let mut head = Vec::new();
        while let Some(transmit) = self.machine.poll_transmit(self.now(), &mut head) {
            self.stream.write_all(&head)?;
            head.clear();
            let Some(slice) = transmit.body else { continue };
            let sent = self.send_body(slice)?;
            if sent < slice.len {
                // The server expects every byte that was announced. It gets zeros, and drops them
                // after the abort.
                io::copy(&mut io::repeat(0).take(slice.len - sent), &mut self.stream)?;
                let reason = RequestError::Source { detail: "the file has become shorter".into() };
                self.machine.abort_blob(slice.transfer, reason).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    /// Copies a slice from the file to the socket. Returns how many bytes the file had.
    fn send_body(&mut self, slice: Slice) -> io::Result<u64> {
        let Some(file) = &mut self.source else { return Ok(0) };
        file.seek(SeekFrom::Start(slice.offset))?;
        io::copy(&mut file.take(slice.len), &mut self.stream)
    }

    /// Passes input to where the machine expects it: to the machine, or to the file.
    fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Box<dyn Error>> {
        while !bytes.is_empty() {
            let now = self.now();
            match self.machine.expect() {
                Expect::Control { .. } => {
                    let used = self.machine.handle_control(now, bytes)?;
                    bytes = &bytes[used..];
                    self.events.extend(std::iter::from_fn(|| self.machine.poll_event()));
                }
                Expect::Payload(slice) => {
                    let (payload, rest) = bytes.split_at(bytes.len().min(slice.len as usize));
                    let file = self.sink.as_ref().ok_or("payload came without a request")?;
                    file.write_all_at(payload, slice.offset)?;
                    let n = payload.len() as u64;
                    self.machine.payload_moved(now, n)?;
                    // The file has these bytes: this gives the server credit for more.
                    self.machine.stored(slice.transfer, slice.offset + n)?;
                    bytes = rest;
                }
            }
        }
        Ok(())
    }

    /// Runs turns until this request has its one answer: a reply, or the end of a transfer.
    fn answer(&mut self, id: RequestId) -> Result<Answer, Box<dyn Error>> {
        loop {
            while let Some(event) = self.events.pop_front() {
                match event {
                    Event::Reply { id: of, result } if of == id => return Ok(Answer::Reply(result?)),
                    Event::Transfer(TransferEvent::Stopped { digest, .. }) => {
                        return Ok(Answer::Blob(digest));
                    }
                    Event::Transfer(TransferEvent::Aborted { reason, .. }) => return Err(reason.into()),
                    _ => {} // a transfer's begin, replies that a later one implies, and invalidations
                }
            }
            self.turn()?;
        }
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    Reply(Reply),
    Blob(Digest),
}

fn main() -> Result<(), Box<dyn Error>> {
    let server = ExampleServer::start()?;
    let mut client = Client::connect(server.address)?;

    // The download. Its bytes are verified by the digest, which follows the last of them.
    let path = server.home.path().join("download");
    client.sink = Some(File::create(&path)?);
    let whole = Request::SendBlob { blob: server.blob, from: 0, upto: u64::MAX };
    let id = client.machine.request(whole)?;
    let Answer::Blob(digest) = client.answer(id)? else { return Err("the server sent no blob".into()) };
    server.check(&path, digest)?;

    // The upload, with a few bytes more. The client need not wait: the server holds the commit
    // until it has the blob.
    File::options().append(true).open(&path)?.write_all(b"and a few bytes more")?;
    let (size, digest) = (path.metadata()?.len(), digest_of(&path)?);
    client.source = Some(File::open(&path)?);
    let mut txn = TxnId([0; 16]);
    File::open("/dev/urandom")?.read_exact(&mut txn.0)?;
    client.machine.request(Request::Begin { txn, meta: TxnMeta::default() })?;
    let (oid, base) = (server.blob.oid, server.blob.tid);
    client.machine.upload(txn, oid, base, b"its new record".to_vec(), size, Some(digest))?;
    let id = client.machine.request(Request::Commit { txn })?;
    let Answer::Reply(Reply::Finished { tid }) = client.answer(id)? else {
        return Err("another client has changed the object meanwhile".into());
    };
    println!("uploaded {size} bytes, committed as {tid}");

    // The load of the new revision.
    let id = client.machine.request(Request::Load { oid })?;
    let blob = Some(BlobInfo { size, digest });
    let revision = Revision { tid, next: None, data: b"its new record".to_vec(), blob };
    assert_eq!(client.answer(id)?, Answer::Reply(Reply::Revision(revision)));
    println!("the server has them, with the same digest");

    client.machine.goodbye()?;
    client.send()?;
    assert!(
        client.machine.is_finished(),
        "everything is sent and answered, so that the socket can be closed"
    );
    server.stop();
    Ok(())
}
