//! Servers in processes of their own, clients, and idle connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{Config, Time, buffered, client};
use blobferry_store::{MemoryStore, Store, StoreConfig};
use blobferry_transport_mio::{Client, ClientConfig, Server, ServerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The environment variable that is set in the second process of a test.
const PART: &str = "BLOBFERRY_MIO_TEST_PART";

/// Returns whether this process is the second process of a test.
pub(crate) fn is_second_process() -> bool {
    std::env::var_os(PART).is_some()
}

/// Returns the command that runs the same test as its second process.
pub(crate) fn second_process(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(PART, "1");
    command
}

pub(crate) fn store() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(StoreConfig::default()).unwrap())
}

pub(crate) fn server(loops: usize) -> Server {
    Server::bind_with_loops("127.0.0.1:0", store(), ServerConfig::default(), loops).unwrap()
}

/// Returns a client that ends with its connection.
pub(crate) fn client(address: &str, dir: &Path) -> Client {
    let cache = Cache::open(dir, CacheConfig::default()).unwrap();
    let config = ClientConfig { reconnect: None, ..ClientConfig::default() };
    Client::connect(address, cache, config).unwrap()
}

/// Limits this process to `most` descriptors. `None` raises the limit to the highest that is
/// allowed.
pub(crate) fn descriptors(most: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most.or(maximum), maximum }).unwrap();
}

/// Serves until standard input ends: the second process of a test that needs a server.
pub(crate) fn serve() -> ! {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stdout).init();
    let server = server(1);
    println!("\naddress {}", server.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.stop();
    std::process::exit(0);
}

/// A process that [serves](serve).
pub(crate) struct ServerProcess {
    pub(crate) address: String,
    output: BufReader<ChildStdout>,
    process: Child,
}

impl ServerProcess {
    pub(crate) fn start(test: &str) -> ServerProcess {
        let mut process = second_process(test).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut server = ServerProcess { address: String::new(), output, process };
        server.address = server.wait_for("address ");
        server
    }

    /// Waits for an output line that contains `text`. Returns the rest of the line.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the server ended without printing {text:?}"
            );
            if let Some((_, rest)) = line.split_once(text) {
                return rest.trim_end().to_owned();
            }
        }
    }

    /// Returns the resident memory of the process in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let ended = self.process.wait().unwrap();
        assert!(ended.success() || std::thread::panicking(), "{ended}");
    }
}

/// Returns an idle connection whose handshake is done.
pub(crate) fn idle(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut machine = client::Connection::new(Time::ZERO, Config::default(), b"");
    let mut hello = Vec::new();
    buffered::transmit(&mut machine, Time::ZERO, &mut hello, usize::MAX, |_, _| Ok(()));
    stream.write_all(&hello).unwrap();
    let mut buffer = [0; 4096];
    while !machine.is_connected() {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "the server has closed the connection");
        buffered::receive(&mut machine, Time::ZERO, &buffer[..n], &mut (), |_, _, _| {}, |_, _, _| {})
            .unwrap();
    }
    stream
}
