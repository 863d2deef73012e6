//! A proxy between clients and a server, on which bytes get only as far as the test lets them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// A test that waits for so long waits for ever.
const FOR_EVER: Duration = Duration::from_secs(120);

/// Forwards connections. Clients that come while there is no server wait for one.
pub(crate) struct ThrottledProxy {
    pub(crate) address: String,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    server: Option<String>,
    /// How many bytes each connection may carry to the server, and from it.
    limits: [u64; 2],
    /// Counts the servers there have been: connections to an earlier one are over.
    era: u64,
    closed: bool,
    connections: usize,
    /// Those that there are, by their number: the client's end and the server's.
    streams: BTreeMap<usize, [TcpStream; 2]>,
    /// Connections with a number up to this one have lost their client, and nobody tells the server.
    stranded: usize,
    ended: usize,
    /// Connections that have more to carry than they may.
    held: usize,
    /// Bytes that were carried to the server in all, and from it.
    passed: [u64; 2],
}

/// To the server: an index of [`State::limits`] and [`State::passed`].
pub(crate) const UP: usize = 0;
/// From the server.
pub(crate) const DOWN: usize = 1;

impl ThrottledProxy {
    /// A proxy to a server, open in both directions.
    pub(crate) fn to(server: &str) -> ThrottledProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        let accepting = Some(std::thread::spawn(move || accepting.accept(&listener)));
        let proxy = ThrottledProxy { address, shared, accepting };
        proxy.lead_to(server);
        proxy
    }

    /// Another server is at the end of the proxy.
    pub(crate) fn lead_to(&self, server: &str) {
        self.shared.change(|state| state.server = Some(server.to_owned()));
        self.open();
    }

    /// Every connection is cut; those that come wait for a server.
    pub(crate) fn cut(&self) {
        self.shared.change(|state| {
            state.era += 1;
            state.server = None;
            state.streams.values().flatten().for_each(shut);
        });
    }

    /// Every connection that has come is cut at the client's end, and the server is not told. Others may come.
    pub(crate) fn strand(&self) {
        self.shared.change(|state| {
            state.stranded = state.connections;
            state.streams.values().for_each(|[client, _]| shut(client));
        });
        self.open();
    }

    /// Each connection carries only so many bytes in this direction.
    pub(crate) fn limit(&self, way: usize, bytes: u64) {
        self.shared.change(|state| state.limits[way] = bytes);
    }

    /// Everything may pass.
    pub(crate) fn open(&self) {
        self.shared.change(|state| state.limits = [u64::MAX; 2]);
    }

    /// Waits until so many connections have come, in all.
    pub(crate) fn wait_for_connections(&self, count: usize) {
        self.shared.wait(|state| state.connections >= count);
    }

    /// Waits until a connection has more to carry than it may.
    pub(crate) fn wait_until_held(&self) {
        self.shared.wait(|state| state.held > 0);
    }

    /// Waits until so many bytes have passed in this direction, or a connection has come to its end.
    pub(crate) fn wait_until_passed(&self, way: usize, bytes: u64) {
        self.shared.wait(|state| state.passed[way] >= bytes || state.ended > 0);
    }

    /// Waits until all connections that have come are over: what has passed by then is all that there was to be said.
    pub(crate) fn wait_until_all_is_over(&self) {
        self.shared.wait(|state| state.ended == state.connections);
    }

    /// How many bytes have passed, in all: to the server, and from it.
    pub(crate) fn passed(&self) -> [u64; 2] {
        self.shared.lock().passed
    }
}

impl Drop for ThrottledProxy {
    fn drop(&mut self) {
        self.cut();
        self.shared.change(|state| state.closed = true);
        // One that comes is seen to be the last.
        let _ = TcpStream::connect(&self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, act: impl FnOnce(&mut State)) {
        act(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        let (_guard, waited) =
            self.changed.wait_timeout_while(self.lock(), FOR_EVER, |state| !until(state)).unwrap();
        assert!(!waited.timed_out(), "nothing happens on the proxy");
    }

    fn accept(self: &Arc<Shared>, listener: &TcpListener) {
        for client in listener.incoming() {
            let (client, shared) = (client.unwrap(), self.clone());
            if self.lock().closed {
                return;
            }
            std::thread::spawn(move || shared.connect(client));
        }
    }

    fn connect(self: Arc<Shared>, client: TcpStream) {
        let (server, era) = {
            let here = |state: &mut State| state.server.is_none() && !state.closed;
            let state = self.changed.wait_while(self.lock(), here).unwrap();
            let Some(server) = state.server.clone() else { return };
            (server, state.era)
        };
        let Ok(server) = TcpStream::connect(server) else { return };
        let mut number = 0;
        self.change(|state| {
            state.connections += 1;
            number = state.connections;
            state.streams.insert(number, [client.try_clone().unwrap(), server.try_clone().unwrap()]);
            // It may have been cut while it was made.
            if state.era != era {
                state.streams.values().flatten().for_each(shut);
            }
        });
        std::thread::scope(|scope| {
            scope.spawn(|| self.carry(&client, &server, UP, number, era));
            scope.spawn(|| self.carry(&server, &client, DOWN, number, era));
        });
        self.change(|state| {
            state.ended += 1;
            state.streams.remove(&number);
        });
    }

    /// Carries bytes in one direction, until one of the ends is gone or the proxy is cut.
    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream, way: usize, number: usize, era: u64) {
        let mut buffer = vec![0; 16 << 10];
        let mut passed = 0;
        'carry: while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let Some(room) = self.room(way, passed, number, era) else { break 'carry };
                let (now, later) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
                if to.write_all(now).is_err() {
                    break 'carry;
                }
                rest = later;
                passed += now.len() as u64;
                self.change(|state| state.passed[way] += now.len() as u64);
            }
        }
        if self.lock().stranded < number {
            [from, to].into_iter().for_each(shut);
        } else if way == DOWN {
            // What the server says is lost, until it has understood, or the proxy is cut.
            while let Ok(1..) = from.read(&mut buffer) {}
        }
    }

    /// How many more bytes may be carried, when any may; `None` where the proxy is cut.
    fn room(&self, way: usize, passed: u64, number: usize, era: u64) -> Option<u64> {
        let mut state = self.lock();
        let gone = |state: &State| state.era != era || number <= state.stranded;
        let shut = |state: &State| state.limits[way] <= passed && !gone(state);
        if shut(&state) {
            state.held += 1;
            self.changed.notify_all();
            state = self.changed.wait_while(state, |state| shut(state)).unwrap();
            state.held -= 1;
        }
        (!gone(&state)).then(|| state.limits[way] - passed)
    }
}

fn shut(stream: &TcpStream) {
    // Its other end may be gone already.
    let _ = stream.shutdown(Shutdown::Both);
}
