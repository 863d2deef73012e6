//! The client: a session with one connection after the other, shared by any number of threads.

use blobferry_platform::sync::{Condvar, Mutex, MutexGuard};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use blobferry_cache::Cache;
use blobferry_session::client::{Addresses, ClientConfig, ConnectError, Session};
use blobferry_session::io::CloseReason;

use crate::leader::LeaderFollowers;
use crate::notifications::{ConnectionEvents, Invalidations, Notifications};
use crate::parker::{wait, wait_on};
use crate::thread;
use crate::thread_context;
use crate::transaction::Transaction;

/// A connection to a server, and a cache. Clones share both, and may be used by any number of threads at once.
///
/// A connection that is lost is made again, and what was under way goes on: see
/// [`Reconnect`](blobferry_session::client::Reconnect).
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    line: Arc<ConnectionManager>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// Connects to the first of the addresses where a server answers, and returns when the handshake is done.
    ///
    /// # Errors
    /// Nobody is there, or it is not a server that speaks to us: what the last of the addresses had to say.
    pub fn connect(
        addresses: impl Into<Addresses>,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Client, ConnectError> {
        let addresses = addresses.into();
        let mut failed = ConnectError::no_address();
        for (place, address) in addresses.iter().enumerate() {
            let session = Session::new(cache.clone(), &config, addresses.clone(), place);
            match Client::start(session, address, config.connection.handshake_timeout) {
                Ok(client) => return Ok(client),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn start(session: Session, address: &str, patience: Duration) -> Result<Client, ConnectError> {
        let line = Arc::new(ConnectionManager::new(session.clone(), patience));
        let failed = |source| ConnectError::Connect { address: address.to_owned(), source };
        let crew = line.connect(address).map_err(failed)?;
        let running = line.clone();
        let thread =
            Mutex::new(Some(thread::start("blobferry-client", move || running.run(crew)).map_err(failed)?));
        let client = Client(Arc::new(Inner { session, line, thread }));
        wait(|done| client.0.session.connected(done))
            .map_err(|source| ConnectError::Handshake { address: address.to_owned(), source })?;
        Ok(client)
    }

    blobferry_session::client_methods!(wait_on);

    /// Says goodbye, waits until what is under way has come to its end, and closes the connection. Other clones can
    /// not use it any more either.
    pub fn close(self) {
        thread_context::give_up_leads();
        self.0.session.goodbye();
        self.0.line.wake();
        self.0.join();
    }
}

impl Inner {
    /// Waits for the end of the thread, unless it is calling a server: that may take its time, and disturbs nobody.
    fn join(&self) {
        if self.line.state().calling {
            return;
        }
        let thread = self.thread.lock().take();
        thread.and_then(thread::join);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        thread_context::give_up_leads();
        // Without goodbye: what is under way is given up.
        self.session.close("the client was dropped");
        self.line.cut();
        self.join();
    }
}

/// The connection of a client, and its own thread, which drives it while nobody else does, and makes another when it is
/// lost.
#[derive(Debug)]
struct ConnectionManager {
    session: Session,
    /// How long a connection may take to come about.
    patience: Duration,
    state: Mutex<ManagerState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ManagerState {
    /// A server is being called.
    calling: bool,
    /// Those who drive the connection that there is.
    crew: Option<Arc<LeaderFollowers>>,
    /// The thread is to look whether there is anything left to do.
    woken: bool,
    cut: bool,
}

impl ConnectionManager {
    fn new(session: Session, patience: Duration) -> ConnectionManager {
        ConnectionManager { session, patience, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, ManagerState> {
        self.state.lock()
    }

    /// Connects, and gives those who drive the connection to its end.
    fn connect(&self, address: &str) -> io::Result<Arc<LeaderFollowers>> {
        self.state().calling = true;
        let stream = call(address, self.patience);
        self.state().calling = false;
        let stream = stream?;
        stream.set_nonblocking(true)?;
        let stream = mio::net::TcpStream::from_std(stream);
        let crew = LeaderFollowers::new(self.session.clone(), stream)?;
        let mut state = self.state();
        if state.cut {
            crew.cut();
        }
        state.crew = Some(crew.clone());
        Ok(crew)
    }

    fn run(&self, first: Arc<LeaderFollowers>) {
        thread_context::becomes_clients();
        let mut next = Some(first);
        while let Some(crew) = next {
            let ended = crew.run_background();
            crew.end(&ended);
            self.state().crew = None;
            next = self.connect_again();
        }
    }

    fn connect_again(&self) -> Option<Arc<LeaderFollowers>> {
        loop {
            let dial = self.session.next_dial()?;
            if self.pause(dial.pause) {
                match self.connect(&dial.address) {
                    Ok(crew) => return Some(crew),
                    Err(error) => self.session.lost(&CloseReason::Stream(error)),
                }
            }
        }
    }

    /// Waits; `false` if it was woken before.
    fn pause(&self, time: Duration) -> bool {
        let mut state = self.changed.wait_timeout_while(self.state(), time, |state| !state.woken);
        !std::mem::take(&mut state.woken)
    }

    /// The session may be over.
    fn wake(&self) {
        let mut state = self.state();
        state.woken = true;
        state.crew.iter().for_each(|crew| crew.finish());
        drop(state);
        self.changed.notify_all();
    }

    /// Whatever is under way: it is over.
    fn cut(&self) {
        let mut state = self.state();
        (state.cut, state.woken) = (true, true);
        state.crew.iter().for_each(|crew| crew.cut());
        drop(state);
        self.changed.notify_all();
    }
}

/// Connects to the first place of a name where somebody listens.
fn call(address: &str, patience: Duration) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for place in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
