//! A proxy between clients and a server that passes only as many bytes as the test allows.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::support::TEST_TIMEOUT;

/// Forwards connections. Clients that connect while there is no server wait for one.
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
    /// Number of bytes that each connection may pass to the server, and from it.
    limits: [u64; 2],
    /// Number of the current server. Connections with an earlier number are closed.
    generation: u64,
    closed: bool,
    connections: usize,
    /// Open connections by number: the client's socket and the server's.
    streams: BTreeMap<usize, [TcpStream; 2]>,
    /// Connections up to this number are half-open: their client is gone and the server is not
    /// notified.
    half_open_up_to: usize,
    ended: usize,
    /// Number of connections that wait because their limit is used up.
    held: usize,
    /// Total number of bytes passed to the server, and from it.
    passed: [u64; 2],
}

/// Direction to the server: an index of [`State::limits`] and [`State::passed`].
pub(crate) const UP: usize = 0;
/// Direction from the server.
pub(crate) const DOWN: usize = 1;

impl ThrottledProxy {
    /// Starts a proxy to a server, without limits.
    pub(crate) fn to(server: &str) -> ThrottledProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        let accepting = Some(std::thread::spawn(move || accepting.accept(&listener)));
        let proxy = ThrottledProxy { address, shared, accepting };
        proxy.set_server(server);
        proxy
    }

    /// Forwards to another server from now on, without limits.
    pub(crate) fn set_server(&self, server: &str) {
        self.shared.change(|state| state.server = Some(server.to_owned()));
        self.open();
    }

    /// Closes every connection. New ones wait for a server.
    pub(crate) fn cut(&self) {
        self.shared.change(|state| {
            state.generation += 1;
            state.server = None;
            state.streams.values().flatten().for_each(shut);
        });
    }

    /// Closes every connection on the client's side only, so the server sees them as open. Accepts
    /// new ones.
    pub(crate) fn leave_half_open(&self) {
        self.shared.change(|state| {
            state.half_open_up_to = state.connections;
            state.streams.values().for_each(|[client, _]| shut(client));
        });
        self.open();
    }

    /// Limits the number of bytes that each connection passes in one direction.
    pub(crate) fn limit(&self, direction: usize, bytes: u64) {
        self.shared.change(|state| state.limits[direction] = bytes);
    }

    /// Removes all limits.
    pub(crate) fn open(&self) {
        self.shared.change(|state| state.limits = [u64::MAX; 2]);
    }

    /// Waits until this number of connections was accepted in total.
    pub(crate) fn wait_for_connections(&self, count: usize) {
        self.shared.wait(|state| state.connections >= count);
    }

    /// Waits until a connection has used up its limit and has more to pass.
    pub(crate) fn wait_until_held(&self) {
        self.shared.wait(|state| state.held > 0);
    }

    /// Waits until this number of bytes has passed in one direction, or a connection has ended.
    pub(crate) fn wait_until_passed(&self, direction: usize, bytes: u64) {
        self.shared.wait(|state| state.passed[direction] >= bytes || state.ended > 0);
    }

    /// Waits until all connections have ended, so that the totals are final.
    pub(crate) fn wait_until_all_ended(&self) {
        self.shared.wait(|state| state.ended == state.connections);
    }

    /// Returns the total number of bytes passed to the server, and from it.
    pub(crate) fn passed(&self) -> [u64; 2] {
        self.shared.lock().passed
    }
}

impl Drop for ThrottledProxy {
    fn drop(&mut self) {
        self.cut();
        self.shared.change(|state| state.closed = true);
        // Wakes the accepting thread, which then sees that the proxy is closed.
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
            self.changed.wait_timeout_while(self.lock(), TEST_TIMEOUT, |state| !until(state)).unwrap();
        assert!(!waited.timed_out(), "timed out waiting for the proxy");
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
        let (server, generation) = {
            let no_server = |state: &mut State| state.server.is_none() && !state.closed;
            let state = self.changed.wait_while(self.lock(), no_server).unwrap();
            let Some(server) = state.server.clone() else { return };
            (server, state.generation)
        };
        let Ok(server) = TcpStream::connect(server) else { return };
        let mut number = 0;
        self.change(|state| {
            state.connections += 1;
            number = state.connections;
            state.streams.insert(number, [client.try_clone().unwrap(), server.try_clone().unwrap()]);
            // The proxy may have been cut during the connect.
            if state.generation != generation {
                state.streams.values().flatten().for_each(shut);
            }
        });
        std::thread::scope(|scope| {
            scope.spawn(|| self.carry(&client, &server, UP, number, generation));
            scope.spawn(|| self.carry(&server, &client, DOWN, number, generation));
        });
        self.change(|state| {
            state.ended += 1;
            state.streams.remove(&number);
        });
    }

    /// Passes bytes in one direction until a socket closes or the proxy is cut.
    fn carry(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        direction: usize,
        number: usize,
        generation: u64,
    ) {
        let mut buffer = vec![0; 16 << 10];
        let mut passed = 0;
        'carry: while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let Some(allowance) = self.wait_for_allowance(direction, passed, number, generation) else {
                    break 'carry;
                };
                let (now, later) =
                    rest.split_at(rest.len().min(usize::try_from(allowance).unwrap_or(usize::MAX)));
                if to.write_all(now).is_err() {
                    break 'carry;
                }
                rest = later;
                passed += now.len() as u64;
                self.change(|state| state.passed[direction] += now.len() as u64);
            }
        }
        if self.lock().half_open_up_to < number {
            [from, to].into_iter().for_each(shut);
        } else if direction == DOWN {
            // Discards what the server sends until it closes the connection or the proxy is cut.
            while let Ok(1..) = from.read(&mut buffer) {}
        }
    }

    /// Waits until bytes may pass; returns their number, or `None` if the proxy is cut.
    fn wait_for_allowance(
        &self,
        direction: usize,
        passed: u64,
        number: usize,
        generation: u64,
    ) -> Option<u64> {
        let mut state = self.lock();
        let gone = |state: &State| state.generation != generation || number <= state.half_open_up_to;
        let shut = |state: &State| state.limits[direction] <= passed && !gone(state);
        if shut(&state) {
            state.held += 1;
            self.changed.notify_all();
            state = self.changed.wait_while(state, |state| shut(state)).unwrap();
            state.held -= 1;
        }
        (!gone(&state)).then(|| state.limits[direction] - passed)
    }
}

fn shut(stream: &TcpStream) {
    // The peer may have closed it already.
    let _ = stream.shutdown(Shutdown::Both);
}
