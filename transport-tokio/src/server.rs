//! The server: accepts connections, and drives a session on each.

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
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    service: ServerCore,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens, and answers from the store. Runs in tasks of its own on the runtime that this is called in.
    ///
    /// # Errors
    /// The address can not be listened on.
    pub async fn bind(
        addr: impl ToSocketAddrs,
        store: Arc<dyn Store>,
        config: ServerConfig,
    ) -> io::Result<Server> {
        let listener = TcpListener::bind(addr).await?;
        set_accept_backlog(&listener)?;
        let address = listener.local_addr()?;
        let service = ServerCore::new(store, config);
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, service.clone(), stopped));
        Ok(Server { address, service, stop, accepting })
    }

    /// The address that it listens on, with the port that it was given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops gracefully: accepts nobody any more, begins nothing new, finishes what is under way (for at most the
    /// configured time), and closes the store.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // A task that has panicked has stopped, too.
        let _ = (&mut self.accepting).await;
        let store = self.service.store().clone();
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until it is told to stop, then waits for the connections to end.
async fn accept(listener: TcpListener, service: ServerCore, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => drop(connections.spawn(serve(stream, peer, service.clone()))),
                Err(error) => {
                    // Neither missing descriptors nor a peer that was gone at once is a reason to stop.
                    tokio::time::sleep(service.not_accepted(&error)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    service.stop();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(service.config().grace, ended).await.is_err() {
        service.grace_is_over(connections.len());
    }
    connections.shutdown().await;
}

/// Waits until it is said, or nobody is left who could.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, service: ServerCore) {
    let bell = Arc::new(TaskWaker::default());
    let ended = match begin(&stream, &service, &bell) {
        Ok(mut carrier) => drive(&mut stream, &mut carrier, &bell, || false).await,
        Err(error) => CloseReason::Stream(error),
    };
    ended.log(peer);
}

/// Begins a conversation; in a box, because a task has room for everything that is moved in it twice.
fn begin(
    stream: &TcpStream,
    service: &ServerCore,
    bell: &Arc<TaskWaker>,
) -> io::Result<Box<ConnectionIo<Handler>>> {
    let ring = bell.clone();
    ConnectionIo::begin(stream, |now| Handler::new(service, now, move || ring.ring())).map(Box::new)
}
