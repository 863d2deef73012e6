//! A proxy between clients and a server that injects faults into every connection.
//!
//! The faults of a connection, and the bytes at which they occur, depend only on the seed and the
//! connection's number. The time of a fault depends on the traffic. The test can disable all
//! faults.

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
    faults_disabled: AtomicBool,
    server: watch::Sender<Option<String>>,
    counters: Counters,
}

/// Numbers of connections, bytes and faults so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) reset: AtomicU64,
    pub(super) silenced: AtomicU64,
    pub(super) half_closed: AtomicU64,
    pub(super) paused: AtomicU64,
    pub(super) fragmented: AtomicU64,
    /// Connections that ended during a read of at least [`BLOB_READ`] bytes, which must have been a
    /// blob.
    pub(super) amid_blobs: AtomicU64,
}

/// A fault of a connection.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Closes the connection in both directions.
    Close,
    /// Resets the connection in both directions.
    Reset,
    /// Discards all further bytes and keeps the sockets open.
    Silence,
    /// Closes the connection in this direction.
    HalfClose,
    /// Passes nothing in this direction for this time.
    Pause(Duration),
    /// Passes this number of bytes in pieces of 1 to 13 bytes.
    Fragment(u64),
}

/// A read of this number of bytes or more contains part of a blob.
const BLOB_READ: usize = 4096;

impl ChaosProxy {
    /// Starts a proxy to a server.
    pub(super) fn to(server: &str, seed: u64) -> ChaosProxy {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (server, _) = watch::channel(Some(server.to_owned()));
        let shared = Arc::new(Shared {
            seed,
            faults_disabled: AtomicBool::new(false),
            server,
            counters: Counters::default(),
        });
        runtime.spawn(shared.clone().accept(listener));
        ChaosProxy { address, shared, _runtime: runtime }
    }

    /// Sets the server's address. Clients wait while there is none.
    pub(super) fn set_server(&self, server: Option<&str>) {
        self.shared.server.send_replace(server.map(str::to_owned));
    }

    /// Disables or enables all faults.
    pub(super) fn disable_faults(&self, disabled: bool) {
        self.shared.faults_disabled.store(disabled, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.shared.counters
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
        count(&self.counters.connections);
        let direction_random = |direction| Random::new(self.seed).branch(2 * number + direction);
        let carried = tokio::try_join!(
            self.carry(&client, &server, direction_random(0)),
            self.carry(&server, &client, direction_random(1))
        );
        match carried {
            Err(Fault::Reset) => {
                for stream in [&client, &server] {
                    // A closed socket needs no reset.
                    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                }
            }
            Err(Fault::Silence) => drop(tokio::join!(drain(&client), drain(&server))),
            _ => {}
        }
    }

    /// Passes bytes in one direction until they end, or until a fault ends the connection.
    async fn carry(&self, from: &TcpStream, to: &TcpStream, mut random: Random) -> Result<(), Fault> {
        let mut buffer = vec![0; 16 << 10];
        let (mut passed, mut fragmented_until) = (0, 0);
        let mut due = next_offset(&mut random);
        loop {
            let length = read(from, &mut buffer).await.map_err(|_| Fault::Close)?;
            if length == 0 {
                // The sender has closed its direction.
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Ok(());
            }
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let most = if passed < fragmented_until { 1 + random.below(13) } else { u64::MAX };
                let now = most.min(due - passed).min(rest.len() as u64);
                let (piece, later) = rest.split_at(usize::try_from(now).unwrap());
                write(to, piece).await.map_err(|_| Fault::Close)?;
                (rest, passed) = (later, passed + now);
                self.counters.bytes.fetch_add(now, Ordering::Relaxed);
                if passed < due {
                    continue;
                }
                due += next_offset(&mut random);
                let fault = random_fault(&mut random);
                if self.faults_disabled.load(Ordering::Relaxed) {
                    continue;
                }
                self.count_fault(fault, length >= BLOB_READ);
                match fault {
                    Fault::Close | Fault::Reset | Fault::Silence => return Err(fault),
                    Fault::HalfClose => {
                        let _ = SockRef::from(to).shutdown(Shutdown::Write);
                        drain(from).await;
                        return Ok(());
                    }
                    Fault::Pause(time) => tokio::time::sleep(time).await,
                    Fault::Fragment(bytes) => fragmented_until = passed + bytes,
                }
            }
        }
    }

    fn count_fault(&self, fault: Fault, amid_blob: bool) {
        let Counters { closed, reset, silenced, half_closed, paused, fragmented, amid_blobs, .. } =
            &self.counters;
        let (counter, ends) = match fault {
            Fault::Close => (closed, true),
            Fault::Reset => (reset, true),
            Fault::Silence => (silenced, true),
            Fault::HalfClose => (half_closed, true),
            Fault::Pause(_) => (paused, false),
            Fault::Fragment(_) => (fragmented, false),
        };
        count(counter);
        if ends && amid_blob {
            count(amid_blobs);
        }
    }
}

/// Draws the number of bytes until the next fault: log-uniform between 512 bytes and 16 MiB.
fn next_offset(random: &mut Random) -> u64 {
    let scale = 1 << (9 + random.below(15));
    scale + random.below(scale)
}

fn random_fault(random: &mut Random) -> Fault {
    match random.below(12) {
        0..2 => Fault::Close,
        2..4 => Fault::Reset,
        4 => Fault::Silence,
        5..7 => Fault::HalfClose,
        7..10 => Fault::Pause(Duration::from_millis(20 + random.below(500))),
        _ => Fault::Fragment(random.below(10_000)),
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

/// Reads to the end and discards everything.
async fn drain(stream: &TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(1..) = read(stream, &mut buffer).await {}
}
