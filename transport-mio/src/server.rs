//! The server: loops with sessions, and a door beside the first of them.

use blobferry_platform::sync::Mutex;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Instant;

use blobferry_session::io::set_accept_backlog;
use blobferry_session::server::{Handler, ServerConfig, ServerCore};
use blobferry_store::Store;
use mio::net::TcpListener;

use crate::acceptor::Acceptor;
use crate::event_loop::EventLoop;
use crate::loop_handle::LoopHandle;
use crate::thread;

/// A server that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    service: ServerCore,
    loops: Vec<LoopHandle<Handler>>,
    /// Ends when nobody is let in any more.
    door: Mutex<Receiver<()>>,
    /// Of the loops. Each says how many connections it had to close.
    threads: Vec<JoinHandle<usize>>,
}

impl Server {
    /// Listens, and answers from the store. One thread has all sockets; what blocks is done by others.
    ///
    /// # Errors
    /// The address can not be listened on, or the system has no thread or descriptor for it.
    pub fn bind(addr: impl ToSocketAddrs, store: Arc<dyn Store>, config: ServerConfig) -> io::Result<Server> {
        Server::bind_with_loops(addr, store, config, 1)
    }

    /// The same with several threads (at least one), over which the connections are spread. Worth it where one
    /// processor can not copy bytes to and from sockets as fast as the network takes them.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_with_loops(
        addr: impl ToSocketAddrs,
        store: Arc<dyn Store>,
        config: ServerConfig,
        loops: usize,
    ) -> io::Result<Server> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        set_accept_backlog(&listener)?;
        let mut listener = TcpListener::from_std(listener);
        let address = listener.local_addr()?;
        let first = EventLoop::new()?;
        first.watch(&mut listener)?;
        let others = (1..loops).map(|_| EventLoop::new()).collect::<io::Result<Vec<_>>>()?;
        let remotes: Vec<_> = [&first].into_iter().chain(&others).map(EventLoop::remote).collect();

        let service = ServerCore::new(store, config);
        // From here on it is dropped where something fails, and ends what was started.
        let (open, door) = mpsc::channel();
        let mut server =
            Server { address, service, loops: remotes, door: Mutex::new(door), threads: Vec::new() };
        let (service, loops) = (server.service.clone(), server.loops.clone());
        let mut door = Acceptor { listener, service, loops, knocked: false, shut: None };
        let door = move |knocked| {
            // It goes with the door.
            let _open = &open;
            door.open(knocked)
        };
        server.start(move || first.run(door))?;
        for other in others {
            server.start(move || other.run(|_| None))?;
        }
        Ok(server)
    }

    fn start(&mut self, run: impl FnOnce() -> usize + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::start("blobferry-serve", run)?);
        Ok(())
    }

    /// The address that it listens on, with the port that it was given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops gracefully: accepts nobody any more, begins nothing new, finishes what is under way (for at most the
    /// configured time), and closes the store. Blocks until that is done.
    pub fn stop(mut self) {
        let closed = self.end(Instant::now() + self.service.config().grace);
        self.service.grace_is_over(closed);
        self.service.store().close();
    }

    /// Ends the loops; how many connections had to be closed at that moment.
    fn end(&mut self, by: Instant) -> usize {
        self.loops.iter().for_each(|remote| remote.finish(by));
        // Who is told to go may come back at once, and is not to be let in.
        let door = self.door.get_mut();
        let _: Result<(), _> = door.recv();
        self.service.stop();
        self.threads.drain(..).filter_map(thread::join).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Instant::now());
    }
}
