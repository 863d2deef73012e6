//! The clients of the cluster: their processes, their users, and how they connect.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::Time;
use blobferry_session::client::{Addresses, ClientConfig, Session};
use blobferry_session::io::CloseReason;
use blobferry_session::server;

use super::{Cluster, Process, ReceivedInvalidations, RunningUser, SERVER};
use crate::simulator::network::{Connection, Endpoint, Handler, LinkProfile};
use crate::simulator::users::{Backlog, User};
use crate::simulator::world::{Event, Node, Pid, rng_for};

impl Cluster {
    pub(super) fn start_client(&mut self, number: usize) {
        let Some(client) = self.clients.get(number).filter(|client| client.process.is_none()) else { return };
        let machine = client.machine;
        let pid = self.world.spawn(machine);
        let dir = self.path(machine).join("cache");
        let opened = self.world.run_as(pid, || Cache::open(&dir, CacheConfig::default()));
        let cache = match opened {
            Ok(cache) => cache,
            Err(error) => {
                self.world.note(format_args!("{pid} client {number} cannot open its cache: {error}"));
                self.world.end(pid);
                self.world.drain(pid);
                self.world.after(Duration::from_secs(1), Event::Start(Node::Client(number)));
                return;
            }
        };
        let config = ClientConfig { connection: self.scenario.client, ..ClientConfig::default() };
        let invalidations: ReceivedInvalidations = ReceivedInvalidations::default();
        let session = self.world.run_as(pid, || {
            let session = Session::new(cache, &config, Addresses::from("simulated:1"), 0);
            let listen = invalidations.clone();
            session.listen(Box::new(move |invalidation| {
                listen.lock().push(invalidation.clone());
                true
            }));
            session
        });
        self.invalidations.push(invalidations);
        self.world.note(format_args!("{pid} client {number} starts on {machine}"));
        let backlog: Vec<_> = client.backlog.clone();
        for (place, backlog) in backlog.into_iter().enumerate() {
            if !backlog.borrow().is_done() {
                self.start_user(number, place, pid, &session, backlog);
            }
        }
        if let Some(client) = self.clients.get_mut(number) {
            client.process = Some(Process { pid, session });
        }
        self.world.soon(Event::Dial(pid));
    }

    pub(super) fn start_user(
        &mut self,
        client: usize,
        place: usize,
        pid: Pid,
        session: &Session,
        backlog: Rc<RefCell<Backlog>>,
    ) {
        let number = self.users_started;
        self.users_started += 1;
        let machine = self.clients.get(client).map_or(SERVER, |client| client.machine);
        let user = User {
            number,
            world: self.world.clone(),
            session: session.clone(),
            ledger: self.ledger.clone(),
            rng: rng_for(
                self.scenario.seed,
                &format!("user {client} {place} {}", backlog.borrow().operations()),
            ),
            objects: self.scenario.objects,
            largest: self.scenario.largest,
            runs_pack: self.scenario.runs_pack,
            directory: self.path(machine).join("files"),
            backlog,
        };
        let future = Box::pin(user.run());
        self.users
            .insert(number, RunningUser { client, pid, woken: Arc::default(), scheduled: true, future });
        self.world.soon(Event::User(number));
    }

    pub(super) fn resume_user(&mut self, number: usize) {
        let Some(user) = self.users.get_mut(&number) else { return };
        user.scheduled = false;
        let waker = Waker::from(user.woken.clone());
        let (pid, client) = (user.pid, user.client);
        let future = &mut user.future;
        let over =
            self.world.run_as(pid, || future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        if over {
            let user = self.users.remove(&number);
            self.world.run_as(pid, || drop(user));
            self.restart_if_idle(client);
        }
    }

    /// Ends a client whose users have all ended. If they have operations left, the client starts
    /// again.
    pub(super) fn restart_if_idle(&mut self, number: usize) {
        if self.users.values().any(|user| user.client == number) {
            return;
        }
        let Some(client) = self.clients.get(number) else { return };
        if client.has_work()
            && let Some(pid) = client.process.as_ref().map(|process| process.pid)
        {
            self.end_client(number, pid);
            self.world.after(Duration::from_secs(1), Event::Start(Node::Client(number)));
        }
    }

    /// Ends a client's process in an orderly way.
    pub(super) fn end_client(&mut self, number: usize, pid: Pid) {
        self.drop_connections(pid, true);
        let process = self.clients.get_mut(number).and_then(|client| client.process.take());
        self.world.run_as(pid, || {
            if let Some(process) = process {
                process.session.close("the client ends");
            }
        });
        self.world.end(pid);
        self.world.drain(pid);
    }

    pub(super) fn client_of(&self, pid: Pid) -> Option<(usize, &Process)> {
        self.clients.iter().enumerate().find_map(|(number, client)| {
            client.process.as_ref().filter(|process| process.pid == pid).map(|process| (number, process))
        })
    }

    pub(super) fn dial(&mut self, pid: Pid) {
        let Some((_, process)) = self.client_of(pid) else { return };
        let session = process.session.clone();
        let now = self.world.time();
        let reachable =
            self.server.as_ref().filter(|server| !server.stopping && self.partitioned_until <= now);
        let Some(server) = reachable else {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            self.world.run_as(pid, || session.lost(&CloseReason::Stream(refused)));
            return self.dial_again(pid);
        };
        let number = self.connections_made;
        self.connections_made += 1;
        let profile = match self.healed {
            true => LinkProfile { piece: usize::MAX, ..LinkProfile::by(&mut self.net_rng) },
            false => LinkProfile::by(&mut self.net_rng),
        };
        let mut connection = Connection::new(now, profile);
        connection.monitor.transcript = self.world.has_trace().then(Vec::new);
        let endpoint = |pid: Pid, make: &dyn Fn(Arc<AtomicBool>) -> Handler| {
            let woken = Arc::new(AtomicBool::new(true));
            let handler = self.world.run_as(pid, || make(woken.clone()));
            Some(Endpoint { pid, handler, woken, next_drive: None })
        };
        connection.client = endpoint(pid, &|woken| {
            Handler::Client(session.converse(Time::ZERO, move || woken.store(true, Ordering::SeqCst)))
        });
        let service = &server.service;
        connection.server = endpoint(server.pid, &|woken| {
            let wake = move || woken.store(true, Ordering::SeqCst);
            Handler::Server(Box::new(server::Handler::new(service, Time::ZERO, wake)))
        });
        self.world.note(format_args!("c{number} {pid} is connected with {}, {profile:?}", server.pid));
        self.connections.insert(number, connection);
    }

    pub(super) fn dial_again(&mut self, pid: Pid) {
        let Some((number, process)) = self.client_of(pid) else { return };
        let session = process.session.clone();
        match self.world.run_as(pid, || session.next_dial()) {
            Some(dial) => self.world.after(dial.pause + Duration::from_millis(1), Event::Dial(pid)),
            None => {
                self.world.note(format_args!("{pid} client {number} gives up"));
                let users: Vec<usize> = self
                    .users
                    .iter()
                    .filter(|(_, user)| user.pid == pid)
                    .map(|(number, _)| *number)
                    .collect();
                if users.is_empty() && self.client_of(pid).is_some() {
                    self.end_client(number, pid);
                }
            }
        }
    }
}
