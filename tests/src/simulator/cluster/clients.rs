//! The clients of the cluster: their processes, the lives of their users, and whom they call.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::Time;
use blobferry_session::client::{Addresses, ClientConfig, Session};
use blobferry_session::io::CloseReason;
use blobferry_session::server;

use super::{Cluster, Heard, Living, Process, SERVER};
use crate::simulator::network::{Chair, Connection, Manner, Seat};
use crate::simulator::people::{User, Wishes};
use crate::simulator::world::{Event, Node, Pid, chance_for};

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
                self.world.note(format_args!("{pid} client {number} can not open its cache: {error}"));
                self.world.end(pid);
                self.world.bury(pid);
                self.world.after(Duration::from_secs(1), Event::Start(Node::Client(number)));
                return;
            }
        };
        let config = ClientConfig { connection: self.scenario.client, ..ClientConfig::default() };
        let heard: Heard = Heard::default();
        let session = self.world.run_as(pid, || {
            let session = Session::new(cache, &config, Addresses::from("simulated:1"), 0);
            let listen = heard.clone();
            session.listen(Box::new(move |invalidation| {
                listen.lock().unwrap_or_else(PoisonError::into_inner).push(invalidation.clone());
                true
            }));
            session
        });
        self.heard.push(heard);
        self.world.note(format_args!("{pid} client {number} starts on {machine}"));
        let wishes: Vec<_> = client.wishes.clone();
        for (place, wishes) in wishes.into_iter().enumerate() {
            if !wishes.borrow().is_fulfilled() {
                self.begin_life(number, place, pid, &session, wishes);
            }
        }
        if let Some(client) = self.clients.get_mut(number) {
            client.process = Some(Process { pid, session });
        }
        self.world.soon(Event::Dial(pid));
    }

    pub(super) fn begin_life(
        &mut self,
        client: usize,
        place: usize,
        pid: Pid,
        session: &Session,
        wishes: Rc<RefCell<Wishes>>,
    ) {
        let number = self.born;
        self.born += 1;
        let machine = self.clients.get(client).map_or(SERVER, |client| client.machine);
        let user = User {
            number,
            world: self.world.clone(),
            session: session.clone(),
            ledger: self.ledger.clone(),
            chance: chance_for(
                self.scenario.seed,
                &format!("user {client} {place} {}", wishes.borrow().operations()),
            ),
            objects: self.scenario.objects,
            largest: self.scenario.largest,
            packs: self.scenario.packs,
            directory: self.path(machine).join("files"),
            wishes,
        };
        let life = Box::pin(user.live());
        self.users.insert(number, Living { client, pid, woken: Arc::default(), planned: true, life });
        self.world.soon(Event::User(number));
    }

    pub(super) fn go_on(&mut self, number: usize) {
        let Some(user) = self.users.get_mut(&number) else { return };
        user.planned = false;
        let waker = Waker::from(user.woken.clone());
        let (pid, client) = (user.pid, user.client);
        let life = &mut user.life;
        let over = self.world.run_as(pid, || life.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        if over {
            let user = self.users.remove(&number);
            self.world.run_as(pid, || drop(user));
            self.retire(client);
        }
    }

    /// Where a client's users are gone, with or without all that they wanted, so is the client.
    pub(super) fn retire(&mut self, number: usize) {
        if self.users.values().any(|user| user.client == number) {
            return;
        }
        let Some(client) = self.clients.get(number) else { return };
        if client.wants_more()
            && let Some(pid) = client.process.as_ref().map(|process| process.pid)
        {
            self.end_client(number, pid);
            self.world.after(Duration::from_secs(1), Event::Start(Node::Client(number)));
        }
    }

    /// A client's process ends, in an orderly way.
    pub(super) fn end_client(&mut self, number: usize, pid: Pid) {
        self.unseat(pid, true);
        let process = self.clients.get_mut(number).and_then(|client| client.process.take());
        self.world.run_as(pid, || {
            if let Some(process) = process {
                process.session.close("the client ends");
            }
        });
        self.world.end(pid);
        self.world.bury(pid);
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
        let reachable = self.server.as_ref().filter(|server| !server.leaving && self.partition <= now);
        let Some(server) = reachable else {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            self.world.run_as(pid, || session.lost(&CloseReason::Stream(refused)));
            return self.dial_again(pid);
        };
        let number = self.made;
        self.made += 1;
        let manner = match self.healed {
            true => Manner { piece: usize::MAX, ..Manner::by(&mut self.net) },
            false => Manner::by(&mut self.net),
        };
        let mut connection = Connection::new(now, manner);
        connection.tap.said = self.world.is_told().then(Vec::new);
        let chair = |pid: Pid, make: &dyn Fn(Arc<AtomicBool>) -> Seat| {
            let woken = Arc::new(AtomicBool::new(true));
            let seat = self.world.run_as(pid, || make(woken.clone()));
            Some(Chair { pid, seat, woken, visit: None })
        };
        connection.client = chair(pid, &|woken| {
            Seat::Client(session.converse(Time::ZERO, move || woken.store(true, Ordering::SeqCst)))
        });
        let service = &server.service;
        connection.server = chair(server.pid, &|woken| {
            let wake = move || woken.store(true, Ordering::SeqCst);
            Seat::Server(Box::new(server::Handler::new(service, Time::ZERO, wake)))
        });
        self.world.note(format_args!("c{number} {pid} is connected with {}, {manner:?}", server.pid));
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
