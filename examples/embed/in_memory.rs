//! A client's and a server's machine that talk through two vectors, in a time that is stepped by hand: a download is cut
//! in the middle, both sides find out, and the rest is fetched on another connection. A minute passes in no time at all.
//!
//! This is how to test what embeds the machines: no socket, no thread, no sleep, and the same run every time. The feature
//! `testing` has a simulated link with delay and fragments, made of the same calls.
//!
//!     cargo run -p blobferry-examples --bin in_memory

use std::error::Error;
use std::time::Duration;

use blobferry_protocol::{
    BlobId, Config, Digest, Limits, Oid, PeerError, Request, RequestError, Slice, Tid, Time, TransferEvent,
    buffered, client, server,
};

const BLOB: BlobId = BlobId { oid: Oid(1), tid: Tid(7) };
/// How long bytes need to the other side and back.
const ROUND_TRIP: Duration = Duration::from_millis(50);

fn digest_of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// What a client has of the blob. It outlives the connection.
#[derive(Default)]
struct Download {
    bytes: Vec<u8>,
    /// Told by the server when all bytes were sent.
    digest: Option<Digest>,
}

/// Two machines. Everything else is here because they have none of it: the time, the blob, and the download.
struct World {
    now: Time,
    client: client::Connection,
    server: server::Connection,
    blob: Vec<u8>,
    download: Download,
}

impl World {
    /// One round trip: what the client has to say reaches the server, and what that has to say the client.
    fn round_trip(&mut self) -> Result<(), Box<dyn Error>> {
        let up = self.client_says();
        self.server_hears(&up)?;
        let down = self.server_says();
        self.now = self.now + ROUND_TRIP;
        self.client_hears(&down)
    }

    fn client_says(&mut self) -> Vec<u8> {
        let mut up = Vec::new();
        let nothing =
            |_: Slice, _: &mut Vec<u8>| Err(RequestError::Source { detail: "it uploads nothing".into() });
        buffered::transmit(&mut self.client, self.now, &mut up, usize::MAX, nothing);
        up
    }

    fn server_hears(&mut self, up: &[u8]) -> Result<(), Box<dyn Error>> {
        let mut events = Vec::new();
        let note = |events: &mut Vec<server::Event>, _: &mut server::Connection, event| events.push(event);
        buffered::receive(&mut self.server, self.now, up, &mut events, note, |_, _, _| {})?;
        // Nobody uploads here. With payload on its way the events must not wait so long: it needs a sink.
        for event in events {
            match event {
                server::Event::Hello { .. } => self.server.welcome(BLOB.tid)?,
                server::Event::Request { id, request: Request::SendBlob { blob: BLOB, .. } } => {
                    // The machine knows which range was asked for, and says when which bytes of it are to be sent.
                    self.server.start_blob(id.into(), self.blob.len() as u64, digest_of(&self.blob))?;
                }
                server::Event::Request { id, .. } => {
                    self.server.reply(id, Err(RequestError::Unsupported { what: "anything else".into() }))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn server_says(&mut self) -> Vec<u8> {
        let (mut down, blob) = (Vec::new(), &self.blob);
        buffered::transmit(&mut self.server, self.now, &mut down, usize::MAX, |slice, into| {
            let bytes = blob.get(slice.offset as usize..).and_then(|rest| rest.get(..slice.len as usize));
            into.extend_from_slice(bytes.ok_or(RequestError::Source { detail: "too short".into() })?);
            Ok(())
        });
        down
    }

    fn client_hears(&mut self, down: &[u8]) -> Result<(), Box<dyn Error>> {
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
        // This opens the window again. Without it the server would fall silent after the first one.
        stored.map_or(Ok(()), |(transfer, upto)| self.client.stored(transfer, upto))?;
        Ok(())
    }

    /// A new connection, made now; and what is missing is asked for.
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

fn report(now: Time, who: &str, what: Result<(), PeerError>) {
    match what {
        Ok(()) => println!("{:>9.2?}: the {who} has heard nothing for a while, and asks", now.0),
        Err(error) => println!("{:>9.2?}: the {who} gives up: {error}", now.0),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Small windows, so that credit has something to do.
    let limits = Limits { chunk: 1000, transfer_window: 4000, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let now = Time::ZERO;
    let (client, server) = (client::Connection::new(now, config, b""), server::Connection::new(now, config));
    let mut blob = vec![0; 100_000];
    blake3::Hasher::new().finalize_xof().fill(&mut blob);
    let mut world = World { now, client, server, blob, download: Download::default() };

    world.connect(config)?;
    while world.download.bytes.len() < 60_000 {
        world.round_trip()?;
    }
    println!("{:>9.2?}: {} bytes have arrived; the line is cut", world.now.0, world.download.bytes.len());

    // From here on nobody hears anything. Time goes from one timeout to the next: nothing happens in between.
    while let Some(timeout) = world.client.poll_timeout().into_iter().chain(world.server.poll_timeout()).min()
    {
        drop((world.client_says(), world.server_says())); // in vain
        world.now = timeout;
        if world.client.poll_timeout() == Some(timeout) {
            report(timeout, "client", world.client.handle_timeout(timeout));
        }
        if world.server.poll_timeout() == Some(timeout) {
            report(timeout, "server", world.server.handle_timeout(timeout));
        }
    }
    assert_eq!(world.client.error(), Some(&PeerError::Silent { after: config.silence_limit }));

    world.connect(config)?;
    println!("{:>9.2?}: connected again", world.now.0);
    while world.download.digest.is_none() {
        world.round_trip()?;
    }
    assert_eq!(
        world.download.digest,
        Some(digest_of(&world.download.bytes)),
        "the digest is that of the whole blob"
    );
    println!(
        "{:>9.2?}: all {} bytes have arrived; the digest is right",
        world.now.0,
        world.download.bytes.len()
    );
    Ok(())
}
