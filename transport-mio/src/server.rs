//! A server on mio: event loops with connections, and an acceptor in the first of them.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Instant;

use blobferry_platform::sync::Mutex;
use blobferry_session::io::set_accept_backlog;
use blobferry_session::server::{Handler, ServerConfig, ServerCore};
use blobferry_store::Store;
use mio::net::TcpListener;

use crate::acceptor::Acceptor;
use crate::event_loop::EventLoop;
use crate::loop_handle::LoopHandle;
use crate::thread;

/// A server that runs until it is stopped or dropped.
///
/// [`stop`](Self::stop) ends it gracefully. A dropped server closes its connections at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    core: ServerCore,
    loops: Vec<LoopHandle<Handler>>,
    /// Disconnected once the acceptor is dropped.
    acceptor_closed: Mutex<Receiver<()>>,
    /// The threads of the loops. Each returns how many connections it had to close.
    threads: Vec<JoinHandle<usize>>,
}

impl Server {
    /// Listens on an address, and answers from a store.
    ///
    /// One thread has all sockets; a pool of threads does what blocks. Port 0 stands for any free port: see
    /// [`local_addr`](Self::local_addr).
    ///
    /// # Errors
    /// The address cannot be listened on, or the system has no thread or descriptor left.
    pub fn bind(addr: impl ToSocketAddrs, store: Arc<dyn Store>, config: ServerConfig) -> io::Result<Server> {
        Server::bind_with_loops(addr, store, config, 1)
    }

    /// Listens as [`bind`](Self::bind) does, with several threads for sockets (at least one). The connections are spread
    /// over them. This helps if one processor cannot copy bytes to and from sockets as fast as the network takes them.
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
        let handles: Vec<_> = [&first].into_iter().chain(&others).map(EventLoop::handle).collect();

        let core = ServerCore::new(store, config);
        // If a later step fails, this is dropped, and ends the threads that were started.
        let (acceptor_open, acceptor_closed) = mpsc::channel();
        let acceptor_closed = Mutex::new(acceptor_closed);
        let mut server = Server { address, core, loops: handles, acceptor_closed, threads: Vec::new() };
        let mut acceptor = Acceptor::new(listener, server.core.clone(), server.loops.clone());
        let accept = move |ready| {
            // The sender is dropped together with the acceptor.
            let _open: &mpsc::Sender<()> = &acceptor_open;
            acceptor.accept(ready)
        };
        server.start(move || first.run(accept))?;
        for other in others {
            server.start(move || other.run(|_| None))?;
        }
        Ok(server)
    }

    fn start(&mut self, run: impl FnOnce() -> usize + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::start("blobferry-serve", run)?);
        Ok(())
    }

    /// Returns the address that the server listens on, with the port that it was given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops gracefully, and blocks until that is done.
    ///
    /// The server accepts no more connections and begins nothing new. It finishes what is under way, for at most
    /// `ServerConfig::grace`. Then it closes the store.
    pub fn stop(mut self) {
        let closed = self.end(Instant::now() + self.core.config().grace);
        self.core.grace_is_over(closed);
        self.core.store().close();
    }

    /// Ends the loops, and returns how many connections had to be closed at the moment `by`.
    fn end(&mut self, by: Instant) -> usize {
        self.loops.iter().for_each(|handle| handle.finish(by));
        // The acceptor closes first: a client that is asked to leave may come back at once.
        let acceptor_closed = self.acceptor_closed.get_mut();
        let _: Result<(), _> = acceptor_closed.recv();
        self.core.stop();
        self.threads.drain(..).filter_map(thread::join).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Instant::now());
    }
}
