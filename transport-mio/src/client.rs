//! The client: one connection, shared by any number of threads.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use blobferry_cache::Cache;
use blobferry_cache::client::{CallError, ClientConfig, Completion, ConnectError, Session, SessionEndpoint};

use crate::bell::{Bell, Finish, Remote};
use crate::connection::Connection;
use crate::events::Loop;
use crate::invalidations::Invalidations;
use crate::thread;
use crate::transaction::Transaction;

/// A connection to a server, and a cache. Clones share both, and may be used by any number of threads at once.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    remote: Remote<SessionEndpoint>,
    bell: Arc<Bell<SessionEndpoint>>,
    thread: Mutex<Option<JoinHandle<usize>>>,
}

impl Client {
    /// Connects, and returns when the handshake is done.
    ///
    /// # Errors
    /// Nobody is there, or it is not a server that speaks to us.
    pub fn connect(
        addr: impl ToSocketAddrs,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Client, ConnectError> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nonblocking(true)?;
        let stream = mio::net::TcpStream::from_std(stream);
        let events = Loop::new()?;
        let remote = events.remote();
        let bell = remote.bell();
        let wake = bell.clone();
        let (session, carrier) = Session::open(&stream, cache, &config, move || wake.ring())?;
        let closing = session.clone();
        let ended = Box::new(move |ended: &_| closing.close(&format!("{ended}")));
        remote.join(&bell, Connection::new(stream, carrier, ended));
        remote.finish(Finish::Last);
        let thread = Mutex::new(Some(thread::start("blobferry-client", move || events.run(|_| None))?));
        let client = Client(Arc::new(Inner { session, remote, bell, thread }));
        wait(|done| client.0.session.connected(done)).map_err(ConnectError::Handshake)?;
        Ok(client)
    }

    blobferry_cache::client_methods!(wait);

    /// The transactions that are committed from now on, this client's own among them. Each comes before any answer
    /// that exposes it.
    #[must_use]
    pub fn invalidations(&self) -> Invalidations {
        let (sender, receiver) = mpsc::channel();
        self.0.session.listen(Box::new(move |invalidation| sender.send(invalidation.clone()).is_ok()));
        Invalidations(receiver)
    }

    /// Says goodbye, waits until what is under way has come to its end, and closes the connection. Other clones can
    /// not use it any more either.
    pub fn close(self) {
        self.0.session.goodbye();
        self.0.bell.ring();
        self.0.join();
    }
}

impl Inner {
    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.and_then(thread::join);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without goodbye: what is under way is given up, open transactions are aborted by the server.
        self.session.close("the client was dropped");
        self.remote.finish(Finish::By(Instant::now()));
        self.join();
    }
}

/// Blocks the thread until a callback is called: for calls to a [`Session`], whoever drives it. Must not be used on a
/// thread that calls callbacks itself.
///
/// # Errors
/// The call's; [`CallError::Disconnected`] where nobody is left to answer.
pub fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    let (sender, receiver) = mpsc::sync_channel(1);
    start(Box::new(move |result| drop(sender.send(result))));
    receiver.recv().unwrap_or_else(|_| Err(CallError::unanswered().into()))
}
