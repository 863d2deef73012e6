//! A server on tokio: accepts connections, and drives each in a task of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use blobferry_session::io::{CloseReason, ConnectionIo, set_accept_backlog};
use blobferry_session::server::{Handler, ServerConfig, ServerCore};
use blobferry_store::Store;
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::driver::drive;
use crate::wakeup::TaskWaker;

/// A server that runs until it is stopped or dropped.
///
/// [`stop`](Self::stop) ends it gracefully. A dropped server closes its connections at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    core: ServerCore,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens on an address, and answers from a store. The server runs in tasks of its own, on the runtime of the caller.
    /// Port 0 stands for any free port: see [`local_addr`](Self::local_addr).
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind.
    ///
    /// # Errors
    /// The address cannot be listened on.
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO and time enabled.
    pub async fn bind(
        addr: impl ToSocketAddrs,
        store: Arc<dyn Store>,
        config: ServerConfig,
    ) -> io::Result<Server> {
        let listener = TcpListener::bind(addr).await?;
        set_accept_backlog(&listener)?;
        let address = listener.local_addr()?;
        let core = ServerCore::new(store, config);
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, core.clone(), stopped));
        Ok(Server { address, core, stop, accepting })
    }

    /// Returns the address that the server listens on, with the port that it was given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops gracefully, and returns when that is done.
    ///
    /// The server accepts no more connections and begins nothing new. It finishes what is under way, for at most
    /// `ServerConfig::grace`. Then it closes the store.
    ///
    /// # Cancel safety
    /// The drop of the future closes the connections at once, and leaves the store open.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // A task that panicked has ended as well.
        let _ = (&mut self.accepting).await;
        let store = self.core.store().clone();
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts connections until the server stops, then waits for the end of the connections.
async fn accept(listener: TcpListener, core: ServerCore, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => drop(connections.spawn(serve(stream, peer, core.clone()))),
                Err(error) => {
                    // Missing descriptors and peers that left at once are no reason to stop.
                    tokio::time::sleep(core.not_accepted(&error)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    core.stop();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(core.config().grace, ended).await.is_err() {
        core.grace_is_over(connections.len());
    }
    connections.shutdown().await;
}

/// Waits until the server is stopped or dropped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, core: ServerCore) {
    let waker = Arc::new(TaskWaker::default());
    let reason = match begin(&stream, &core, &waker) {
        Ok(mut io) => drive(&mut stream, &mut io, &waker, || false).await,
        Err(error) => CloseReason::Stream(error),
    };
    reason.log(peer);
}

/// Begins a connection. It is boxed because a task reserves memory twice for each value that is moved in it.
fn begin(
    stream: &TcpStream,
    core: &ServerCore,
    waker: &Arc<TaskWaker>,
) -> io::Result<Box<ConnectionIo<Handler>>> {
    let waker = waker.clone();
    ConnectionIo::begin(stream, |now| Handler::new(core, now, move || waker.wake())).map(Box::new)
}
