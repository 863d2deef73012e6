//! A server's door: lets connections in, and spreads them over the loops.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Instant;

use blobferry_session::io::{CloseReason, ConnectionIo};
use blobferry_session::server::{Handler, ServerCore};
use mio::net::{TcpListener, TcpStream};

use crate::connection::Socket;
use crate::loop_handle::LoopHandle;

/// Connections that are let in at once, before those that are in have their turn.
const AT_ONCE: usize = 64;

/// A listener, and where its connections go.
pub(crate) struct Acceptor {
    pub(crate) listener: TcpListener,
    pub(crate) service: ServerCore,
    pub(crate) loops: Vec<LoopHandle<Handler>>,
    /// Somebody may wait before it: known only when nobody did.
    pub(crate) knocked: bool,
    /// It stays shut until then.
    pub(crate) shut: Option<Instant>,
}

impl Acceptor {
    /// Lets in who waits; when to be called again without a knock.
    pub(crate) fn open(&mut self, knocked: bool) -> Option<Instant> {
        self.knocked |= knocked;
        if !self.knocked {
            return None;
        }
        if self.shut.is_some_and(|until| Instant::now() < until) {
            return self.shut;
        }
        self.shut = None;
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((stream, peer)) => self.let_in(stream, peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.knocked = false;
                    break;
                }
                Err(error) => {
                    let pause = self.service.not_accepted(&error);
                    if !pause.is_zero() {
                        self.shut = Some(Instant::now() + pause);
                        return self.shut;
                    }
                }
            }
        }
        self.knocked.then(Instant::now)
    }

    fn let_in(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = self.bring(stream, peer) {
            CloseReason::Stream(error).log(peer);
        }
    }

    /// Brings a connection to the loop that has the fewest.
    fn bring(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let Some(remote) = self.loops.iter().min_by_key(|remote| remote.load()) else { return Ok(()) };
        let bell = remote.bell();
        let wake = bell.clone();
        let carrier =
            ConnectionIo::begin(&stream, |now| Handler::new(&self.service, now, move || wake.ring()))?;
        remote.join(bell, Socket::new(stream, carrier, Box::new(move |ended| ended.log(peer))));
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

    /// Connections that are counted together.
    const MANY: usize = 500;
    /// Bytes of the heap that each of them may hold.
    const EACH: i64 = 2048;

    /// A server whose loop is turned by the test.
    struct Turned {
        events: EventLoop<Handler>,
        door: Acceptor,
        hello: Vec<u8>,
    }

    impl Turned {
        fn new() -> Turned {
            let events = EventLoop::new().unwrap();
            let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            events.watch(&mut listener).unwrap();
            let store = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
            let service = ServerCore::new(store, ServerConfig::default());
            let door =
                Acceptor { listener, service, loops: vec![events.remote()], knocked: false, shut: None };
            let mut machine = client::Connection::new(Time::ZERO, Config::default(), b"");
            let mut hello = Vec::new();
            buffered::transmit(&mut machine, Time::ZERO, &mut hello, usize::MAX, |_, _| Ok(()));
            Turned { events, door, hello }
        }

        /// Connects, and shakes hands.
        fn connect(&mut self) -> std::net::TcpStream {
            let mut stream = std::net::TcpStream::connect(self.door.listener.local_addr().unwrap()).unwrap();
            stream.write_all(&self.hello).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut welcome = [0; 256];
            loop {
                let knocked = self.events.turn(None).unwrap();
                self.door.open(knocked);
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
        let mut server = Turned::new();
        let mut connections = Vec::with_capacity(MANY + 1);
        connections.push(server.connect());
        let held = allocation_counter::measure(|| {
            connections.extend((0..MANY).map(|_| server.connect()));
        });
        let each = held.bytes_current / MANY as i64;
        println!("an idle connection holds {each} bytes");
        assert!(each <= EACH, "{each} bytes each");
    }
}
