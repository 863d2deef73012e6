//! The client: a session with one connection after the other, shared by any number of threads.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blobferry_cache::Cache;
use blobferry_cache::carry::Ended;
use blobferry_cache::client::{
    Addresses, CallError, ClientConfig, Completion, ConnectError, Session, SessionEndpoint,
};

use crate::bell::{Finish, Remote};
use crate::connection::Connection;
use crate::events::Loop;
use crate::news::{ConnectionEvents, Invalidations, News};
use crate::thread;
use crate::transaction::Transaction;

/// A connection to a server, and a cache. Clones share both, and may be used by any number of threads at once.
///
/// A connection that is lost is made again, and what was under way goes on: see
/// [`Reconnect`](blobferry_cache::client::Reconnect).
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    line: Arc<Line>,
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
        let line = Arc::new(Line::new(session.clone(), patience));
        let events = line.connect(address)?;
        let running = line.clone();
        let thread = Mutex::new(Some(thread::start("blobferry-client", move || running.run(events))?));
        let client = Client(Arc::new(Inner { session, line, thread }));
        wait(|done| client.0.session.connected(done)).map_err(ConnectError::Handshake)?;
        Ok(client)
    }

    blobferry_cache::client_methods!(wait);

    /// Says goodbye, waits until what is under way has come to its end, and closes the connection. Other clones can
    /// not use it any more either.
    pub fn close(self) {
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
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.and_then(thread::join);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without goodbye: what is under way is given up.
        self.session.close("the client was dropped");
        self.line.cut();
        self.join();
    }
}

/// The connection of a client, and the thread that drives it and makes another when it is lost.
#[derive(Debug)]
struct Line {
    session: Session,
    /// How long a connection may take to come about.
    patience: Duration,
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LineState {
    /// A server is being called.
    calling: bool,
    /// The loop of the connection that there is.
    remote: Option<Remote<SessionEndpoint>>,
    /// The thread is to look whether there is anything left to do.
    woken: bool,
    cut: bool,
}

impl Line {
    fn new(session: Session, patience: Duration) -> Line {
        Line { session, patience, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, and gives the loop that drives the connection to its end.
    fn connect(&self, address: &str) -> io::Result<Loop<SessionEndpoint>> {
        self.state().calling = true;
        let stream = call(address, self.patience);
        self.state().calling = false;
        let stream = stream?;
        stream.set_nonblocking(true)?;
        let stream = mio::net::TcpStream::from_std(stream);
        let events = Loop::new()?;
        let remote = events.remote();
        let bell = remote.bell();
        let wake = bell.clone();
        let carrier = self.session.connect(&stream, move || wake.ring())?;
        let session = self.session.clone();
        remote.join(&bell, Connection::new(stream, carrier, Box::new(move |ended| session.lost(ended))));
        remote.finish(Finish::Last);
        let mut state = self.state();
        if state.cut {
            remote.finish(Finish::By(Instant::now()));
        }
        state.remote = Some(remote);
        Ok(events)
    }

    fn run(&self, first: Loop<SessionEndpoint>) {
        let mut next = Some(first);
        while let Some(events) = next {
            events.run(|_| None);
            self.state().remote = None;
            next = self.connect_again();
        }
    }

    fn connect_again(&self) -> Option<Loop<SessionEndpoint>> {
        loop {
            let dial = self.session.next_dial()?;
            if self.pause(dial.pause) {
                match self.connect(&dial.address) {
                    Ok(events) => return Some(events),
                    Err(error) => self.session.lost(&Ended::Stream(error)),
                }
            }
        }
    }

    /// Waits; `false` if it was woken before.
    fn pause(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.woken);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        !std::mem::take(&mut state.woken)
    }

    /// The session may be over.
    fn wake(&self) {
        self.state().woken = true;
        self.changed.notify_all();
    }

    /// Whatever is under way: it is over.
    fn cut(&self) {
        let mut state = self.state();
        (state.cut, state.woken) = (true, true);
        if let Some(remote) = &state.remote {
            remote.finish(Finish::By(Instant::now()));
        }
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
