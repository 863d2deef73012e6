//! The acceptor of a server: accepts connections, and spreads them over the event loops.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Instant;

use blobferry_session::io::{CloseReason, ConnectionIo};
use blobferry_session::server::{Handler, ServerCore};
use mio::net::{TcpListener, TcpStream};

use crate::loop_handle::LoopHandle;
use crate::socket::Socket;

/// Connections that are accepted in one round of the loop, at most.
const ACCEPTS_PER_ROUND: usize = 64;

/// A listener, and the event loops for its connections.
pub(crate) struct Acceptor {
    listener: TcpListener,
    core: ServerCore,
    loops: Vec<LoopHandle<Handler>>,
    /// A connection may be waiting. Only an accept that finds none clears this.
    ready: bool,
    /// After a failure nothing is accepted before this moment.
    paused_until: Option<Instant>,
}

impl Acceptor {
    pub(crate) fn new(listener: TcpListener, core: ServerCore, loops: Vec<LoopHandle<Handler>>) -> Acceptor {
        Acceptor { listener, core, loops, ready: false, paused_until: None }
    }

    /// Accepts waiting connections. `ready` says whether the kernel has reported any. Returns the moment at which this
    /// must be called again in any case.
    pub(crate) fn accept(&mut self, ready: bool) -> Option<Instant> {
        self.ready |= ready;
        if !self.ready {
            return None;
        }
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return self.paused_until;
        }
        self.paused_until = None;
        for _ in 0..ACCEPTS_PER_ROUND {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    if let Err(error) = self.add(stream, peer) {
                        CloseReason::Stream(error).log(peer);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.ready = false;
                    break;
                }
                Err(error) => {
                    let pause = self.core.not_accepted(&error);
                    if !pause.is_zero() {
                        self.paused_until = Some(Instant::now() + pause);
                        return self.paused_until;
                    }
                }
            }
        }
        self.ready.then(Instant::now)
    }

    /// Adds a connection to the loop that has the fewest.
    fn add(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let Some(handle) = self.loops.iter().min_by_key(|handle| handle.connections()) else { return Ok(()) };
        let waker = handle.connection_waker();
        let wake = waker.clone();
        let io = ConnectionIo::begin(&stream, |now| Handler::new(&self.core, now, move || wake.wake()))?;
        handle.join(waker, Socket::new(stream, io, Box::new(move |reason| reason.log(peer))));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use blobferry_protocol::{Config, Time, buffered, client};
    use blobferry_session::server::ServerConfig;
    use blobferry_store::{MemoryStore, StoreConfig};

    use super::*;
    use crate::event_loop::EventLoop;

    /// Connections whose memory is counted together.
    const CONNECTIONS: usize = 500;
    /// Bytes of the heap that one connection may hold.
    const BYTES_EACH: i64 = 2048;

    /// A server whose loop the test runs.
    struct TestServer {
        events: EventLoop<Handler>,
        acceptor: Acceptor,
        hello: Vec<u8>,
    }

    impl TestServer {
        fn new() -> TestServer {
            let events = EventLoop::new().unwrap();
            let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            events.watch(&mut listener).unwrap();
            let store = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
            let core = ServerCore::new(store, ServerConfig::default());
            let acceptor = Acceptor::new(listener, core, vec![events.handle()]);
            let mut machine = client::Connection::new(Time::ZERO, Config::default(), b"");
            let mut hello = Vec::new();
            buffered::transmit(&mut machine, Time::ZERO, &mut hello, usize::MAX, |_, _| Ok(()));
            TestServer { events, acceptor, hello }
        }

        /// Connects, and completes the handshake.
        fn connect(&mut self) -> std::net::TcpStream {
            let mut stream =
                std::net::TcpStream::connect(self.acceptor.listener.local_addr().unwrap()).unwrap();
            stream.write_all(&self.hello).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut welcome = [0; 256];
            loop {
                let ready = self.events.round(None).unwrap();
                self.acceptor.accept(ready);
                match stream.read(&mut welcome) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    read => {
                        assert!(read.unwrap() > 0, "the server has closed the connection");
                        return stream;
                    }
                }
            }
        }
    }

    #[test]
    fn an_idle_connection_holds_little_on_the_heap() {
        let mut server = TestServer::new();
        let mut connections = Vec::with_capacity(CONNECTIONS + 1);
        connections.push(server.connect());
        let held = allocation_counter::measure(|| {
            connections.extend((0..CONNECTIONS).map(|_| server.connect()));
        });
        let each = held.bytes_current / CONNECTIONS as i64;
        println!("an idle connection holds {each} bytes");
        assert!(each <= BYTES_EACH, "{each} bytes each");
    }
}
