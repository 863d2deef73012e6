//! A client's and a server's machine exchange bytes through two vectors, with simulated time. The
//! connection is lost in the middle of a download. Both machines time out, and the client resumes
//! the download on another connection.
//!
//! Programs that embed the machines can be tested this way: without socket, thread, or sleep, and
//! with the same run every time. The feature `testing` has a simulated link with delay and
//! fragments, made of the same calls.
//!
//!     cargo run -p blobferry-examples --bin in_memory

use std::error::Error;
use std::time::Duration;

use blobferry_protocol::{
    BlobId, Config, Digest, Limits, Oid, PeerError, Request, RequestError, Slice, Tid, Time, TransferEvent,
    buffered, client, server,
};

const BLOB: BlobId = BlobId { oid: Oid(1), tid: Tid(7) };
/// The simulated time for bytes to the other side and back.
const ROUND_TRIP: Duration = Duration::from_millis(50);

fn digest_of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// The client's part of the blob. It outlives the connection.
#[derive(Default)]
struct Download {
    bytes: Vec<u8>,
    /// The digest of the whole blob. It follows the last byte.
    digest: Option<Digest>,
}

/// Two machines, and what they lack: the time, the blob, and the download.
struct Simulation {
    now: Time,
    client: client::Connection,
    server: server::Connection,
    blob: Vec<u8>,
    download: Download,
}

impl Simulation {
    /// Moves the client's output to the server, and the server's output to the client.
    fn round_trip(&mut self) -> Result<(), Box<dyn Error>> {
        let up = self.client_output();
        self.server_input(&up)?;
        let down = self.server_output();
        self.now = self.now + ROUND_TRIP;
        self.client_input(&down)
    }

    fn client_output(&mut self) -> Vec<u8> {
        let mut up = Vec::new();
        let nothing = |_: Slice, _: &mut Vec<u8>| {
            Err(RequestError::Source { detail: "this client has no uploads".into() })
        };
        buffered::transmit(&mut self.client, self.now, &mut up, usize::MAX, nothing);
        up
    }

    fn server_input(&mut self, up: &[u8]) -> Result<(), Box<dyn Error>> {
        let mut events = Vec::new();
        let note = |events: &mut Vec<server::Event>, _: &mut server::Connection, event| events.push(event);
        buffered::receive(&mut self.server, self.now, up, &mut events, note, |_, _, _| {})?;
        // The client uploads nothing. With uploads, each event must be handled before the payload
        // that follows it.
        for event in events {
            match event {
                server::Event::Hello { .. } => self.server.welcome(BLOB.tid)?,
                server::Event::Request { id, request: Request::SendBlob { blob: BLOB, .. } } => {
                    // The machine knows the requested range, and returns the slices to send when
                    // there is credit for them.
                    self.server.start_blob(id.into(), self.blob.len() as u64, digest_of(&self.blob))?;
                }
                server::Event::Request { id, .. } => {
                    self.server
                        .reply(id, Err(RequestError::Unsupported { what: "other requests".into() }))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn server_output(&mut self) -> Vec<u8> {
        let (mut down, blob) = (Vec::new(), &self.blob);
        buffered::transmit(&mut self.server, self.now, &mut down, usize::MAX, |slice, into| {
            let bytes = blob.get(slice.offset as usize..).and_then(|rest| rest.get(..slice.len as usize));
            into.extend_from_slice(bytes.ok_or(RequestError::Source { detail: "too short".into() })?);
            Ok(())
        });
        down
    }

    fn client_input(&mut self, down: &[u8]) -> Result<(), Box<dyn Error>> {
        let mut stored = None;
        buffered::receive(
            &mut self.client,
            self.now,
            down,
            &mut self.download,
            |download, _, event| {
                if let client::Event::Transfer(TransferEvent::Stopped { digest, .. }) = event {
                    download.digest = Some(digest);
                }
            },
            |download, slice, at| {
                download.bytes.extend_from_slice(&down[at]);
                stored = Some((slice.transfer, slice.offset + slice.len));
            },
        )?;
        // This gives the server credit. Without it the server stops sending after the first window.
        stored.map_or(Ok(()), |(transfer, upto)| self.client.stored(transfer, upto))?;
        Ok(())
    }

    /// Begins a new connection, and requests the missing bytes.
    fn connect(&mut self, config: Config) -> Result<(), Box<dyn Error>> {
        self.client = client::Connection::new(self.now, config, b"");
        self.server = server::Connection::new(self.now, config);
        self.round_trip()?;
        assert!(self.client.is_connected());
        let from = self.download.bytes.len() as u64;
        self.client.request(Request::SendBlob { blob: BLOB, from, upto: u64::MAX })?;
        Ok(())
    }
}

fn report(now: Time, side: &str, handled: Result<(), PeerError>) {
    match handled {
        Ok(()) => println!("{:>9.2?}: the {side} has received nothing, and sends a probe", now.0),
        Err(error) => println!("{:>9.2?}: the {side} gives up: {error}", now.0),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // A small window, so that the download needs credit.
    let limits = Limits { chunk: 1000, transfer_window: 4000, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let now = Time::ZERO;
    let (client, server) = (client::Connection::new(now, config, b""), server::Connection::new(now, config));
    let mut blob = vec![0; 100_000];
    blake3::Hasher::new().finalize_xof().fill(&mut blob);
    let mut simulation = Simulation { now, client, server, blob, download: Download::default() };

    simulation.connect(config)?;
    while simulation.download.bytes.len() < 60_000 {
        simulation.round_trip()?;
    }
    println!(
        "{:>9.2?}: {} bytes have arrived; the connection is lost",
        simulation.now.0,
        simulation.download.bytes.len()
    );

    // From here on no bytes arrive. Time moves from one timeout to the next.
    while let Some(timeout) =
        simulation.client.poll_timeout().into_iter().chain(simulation.server.poll_timeout()).min()
    {
        drop((simulation.client_output(), simulation.server_output())); // the output is lost
        simulation.now = timeout;
        if simulation.client.poll_timeout() == Some(timeout) {
            report(timeout, "client", simulation.client.handle_timeout(timeout));
        }
        if simulation.server.poll_timeout() == Some(timeout) {
            report(timeout, "server", simulation.server.handle_timeout(timeout));
        }
    }
    assert_eq!(simulation.client.error(), Some(&PeerError::Silent { after: config.silence_limit }));

    simulation.connect(config)?;
    println!("{:>9.2?}: connected again", simulation.now.0);
    while simulation.download.digest.is_none() {
        simulation.round_trip()?;
    }
    assert_eq!(
        simulation.download.digest,
        Some(digest_of(&simulation.download.bytes)),
        "the digest is that of the whole blob"
    );
    println!(
        "{:>9.2?}: all {} bytes have arrived; the digest is right",
        simulation.now.0,
        simulation.download.bytes.len()
    );
    Ok(())
}
