//! The proxy between clients and a server: a proxy on which every connection meets its fate, and another one after that.
//!
//! What happens to a connection, and at which byte, is drawn from a seed and the connection's number alone. Only when it
//! gets there depends on what it has to carry. In calm proxy nothing happens to anybody.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::random::Random;

/// A proxy to a server. Dropped, it closes every connection.
pub(super) struct ChaosProxy {
    pub(super) address: String,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

struct Shared {
    seed: u64,
    calm: AtomicBool,
    server: watch::Sender<Option<String>>,
    tally: Tally,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) connections: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) reset: AtomicU64,
    pub(super) vanished: AtomicU64,
    pub(super) muted: AtomicU64,
    pub(super) paused: AtomicU64,
    pub(super) crumbled: AtomicU64,
    /// Connections that were ended while so much was coming that it must have been a blob.
    pub(super) amid_blobs: AtomicU64,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is closed both ways.
    Close,
    /// It is reset both ways.
    Reset,
    /// Whatever is said is lost, and nobody is told.
    Vanish,
    /// It is closed in this direction.
    Mute,
    /// Nothing is carried in this direction for a while.
    Pause(Duration),
    /// It is carried in crumbs for so many bytes.
    Crumble(u64),
}

/// A read of so many bytes is more than small talk.
const MUCH: usize = 4096;

impl ChaosProxy {
    pub(super) fn before(server: &str, seed: u64) -> ChaosProxy {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (server, _) = watch::channel(Some(server.to_owned()));
        let shared = Arc::new(Shared { seed, calm: AtomicBool::new(false), server, tally: Tally::default() });
        runtime.spawn(shared.clone().accept(listener));
        ChaosProxy { address, shared, _runtime: runtime }
    }

    /// Where the server is from here on; clients wait while there is none.
    pub(super) fn set_server(&self, server: Option<&str>) {
        self.shared.server.send_replace(server.map(str::to_owned));
    }

    /// Whether nothing happens from here on, or everything.
    pub(super) fn calm(&self, calm: bool) {
        self.shared.calm.store(calm, Ordering::Relaxed);
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.shared.tally
    }
}

impl Shared {
    async fn accept(self: Arc<Shared>, listener: TcpListener) {
        for number in 0.. {
            if let Ok((client, _)) = listener.accept().await {
                tokio::spawn(self.clone().connect(client, number));
            }
        }
    }

    async fn connect(self: Arc<Shared>, client: TcpStream, number: u64) {
        let mut server = self.server.subscribe();
        let Ok(Some(server)) = server.wait_for(Option::is_some).await.map(|server| server.clone()) else {
            return;
        };
        let Ok(server) = TcpStream::connect(server).await else { return };
        count(&self.tally.connections);
        let chance = |way| Random::new(self.seed).branch(2 * number + way);
        let carried = tokio::try_join!(
            self.carry(&client, &server, chance(0)),
            self.carry(&server, &client, chance(1))
        );
        match carried {
            Err(Fate::Reset) => {
                for stream in [&client, &server] {
                    // One that is gone already needs no reset.
                    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                }
            }
            Err(Fate::Vanish) => drop(tokio::join!(drain(&client), drain(&server))),
            _ => {}
        }
    }

    /// Carries bytes in one direction to their end; or to that of the whole connection, and what it was.
    async fn carry(&self, from: &TcpStream, to: &TcpStream, mut chance: Random) -> Result<(), Fate> {
        let mut buffer = vec![0; 16 << 10];
        let (mut passed, mut crumbs) = (0, 0);
        let mut due = offset(&mut chance);
        loop {
            let length = read(from, &mut buffer).await.map_err(|_| Fate::Close)?;
            if length == 0 {
                // Somebody takes leave.
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Ok(());
            }
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let most = if passed < crumbs { 1 + chance.below(13) } else { u64::MAX };
                let now = most.min(due - passed).min(rest.len() as u64);
                let (piece, later) = rest.split_at(usize::try_from(now).unwrap());
                write(to, piece).await.map_err(|_| Fate::Close)?;
                (rest, passed) = (later, passed + now);
                self.tally.bytes.fetch_add(now, Ordering::Relaxed);
                if passed < due {
                    continue;
                }
                due += offset(&mut chance);
                let fate = fate(&mut chance);
                if self.calm.load(Ordering::Relaxed) {
                    continue;
                }
                self.befall(fate, length >= MUCH);
                match fate {
                    Fate::Close | Fate::Reset | Fate::Vanish => return Err(fate),
                    Fate::Mute => {
                        let _ = SockRef::from(to).shutdown(Shutdown::Write);
                        drain(from).await;
                        return Ok(());
                    }
                    Fate::Pause(time) => tokio::time::sleep(time).await,
                    Fate::Crumble(bytes) => crumbs = passed + bytes,
                }
            }
        }
    }

    fn befall(&self, fate: Fate, amid_blob: bool) {
        let Tally { closed, reset, vanished, muted, paused, crumbled, amid_blobs, .. } = &self.tally;
        let (counter, ends) = match fate {
            Fate::Close => (closed, true),
            Fate::Reset => (reset, true),
            Fate::Vanish => (vanished, true),
            Fate::Mute => (muted, true),
            Fate::Pause(_) => (paused, false),
            Fate::Crumble(_) => (crumbled, false),
        };
        count(counter);
        if ends && amid_blob {
            count(amid_blobs);
        }
    }
}

/// After how many bytes the next thing happens: as likely within the first kilobyte as between two megabytes and four.
fn offset(chance: &mut Random) -> u64 {
    let scale = 1 << (9 + chance.below(15));
    scale + chance.below(scale)
}

fn fate(chance: &mut Random) -> Fate {
    match chance.below(12) {
        0..2 => Fate::Close,
        2..4 => Fate::Reset,
        4 => Fate::Vanish,
        5..7 => Fate::Mute,
        7..10 => Fate::Pause(Duration::from_millis(20 + chance.below(500))),
        _ => Fate::Crumble(chance.below(10_000)),
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

async fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads to the end, and loses it all.
async fn drain(stream: &TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(1..) = read(stream, &mut buffer).await {}
}
