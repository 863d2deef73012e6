//! The cluster: one server, many clients, and the connections between them; what is driven when, and what becomes of a
//! process that dies.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use blobferry_cache::carry::Ended;
use blobferry_cache::client::{Addresses, ClientConfig, Invalidation, Session};
use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::Time;
use blobferry_store::session::{self, Service};
use blobferry_store::{EmbeddedStore, Store, StoreConfig};
use fastrand::Rng;

use super::Scenario;
use super::answer::Flag;
use super::disk::Health;
use super::ledger::Ledger;
use super::misfortune::{Kind, Misfortune};
use super::network::{Chair, Connection, Manner, Seat};
use super::people::User;
use super::tap::Counts;
use super::world::{End, Event, Machine, Node, Pid, World, chance_for};

/// The server's machine.
const SERVER: Machine = Machine(0);

/// Whoever needs more to get done gets nowhere.
const MOST_EVENTS: u64 = 5_000_000;

/// What a session has heard of commits.
pub(super) type Heard = Arc<Mutex<Vec<Invalidation>>>;

struct Server {
    pid: Pid,
    store: Arc<EmbeddedStore>,
    service: Service,
    /// It is about to stop, and takes nobody in.
    leaving: bool,
}

struct Client {
    machine: Machine,
    /// Operations that its users still want to make.
    left: Vec<Rc<RefCell<usize>>>,
    process: Option<Process>,
}

struct Process {
    pid: Pid,
    session: Session,
}

struct Living {
    client: usize,
    pid: Pid,
    woken: Arc<Flag>,
    planned: bool,
    life: Pin<Box<dyn Future<Output = ()>>>,
}

/// See the [module](self).
pub(super) struct Cluster {
    pub(super) world: Rc<World>,
    pub(super) ledger: Rc<RefCell<Ledger>>,
    scenario: Scenario,
    plan: Vec<Misfortune>,
    server: Option<Server>,
    clients: Vec<Client>,
    connections: BTreeMap<usize, Connection>,
    made: usize,
    users: BTreeMap<usize, Living>,
    /// Users that there have been.
    born: usize,
    /// Everything that goes wrong has gone wrong.
    pub(super) healed: bool,
    /// Nobody can call the server before.
    partition: Duration,
    pub(super) heard: Vec<Heard>,
    pub(super) counts: Counts,
    pub(super) deaths: u64,
    events: u64,
    net: Rng,
    fate: Rng,
}

impl Cluster {
    pub(super) fn new(world: Rc<World>, scenario: &Scenario, plan: Vec<Misfortune>) -> Cluster {
        let clients = (0..scenario.clients).map(|number| Client {
            machine: Machine(1 + number % scenario.machines),
            left: (0..scenario.users).map(|_| Rc::new(RefCell::new(scenario.operations))).collect(),
            process: None,
        });
        let clients = clients.collect();
        let cluster = Cluster {
            ledger: Rc::default(),
            net: chance_for(scenario.seed, "network"),
            fate: chance_for(scenario.seed, "fate"),
            scenario: scenario.clone(),
            server: None,
            clients,
            connections: BTreeMap::new(),
            made: 0,
            users: BTreeMap::new(),
            born: 0,
            healed: false,
            partition: Duration::ZERO,
            heard: Vec::new(),
            counts: Counts::default(),
            deaths: 0,
            events: 0,
            plan,
            world,
        };
        cluster.world.soon(Event::Start(Node::Server));
        for number in 0..scenario.clients {
            cluster.world.after(Duration::from_millis(50), Event::Start(Node::Client(number)));
        }
        for (place, misfortune) in cluster.plan.iter().enumerate() {
            cluster.world.after(misfortune.at, Event::Misfortune(place));
        }
        cluster
    }

    /// Goes on until `enough`, or until the moment `until`; says which.
    ///
    /// `Err`: a rule was broken.
    pub(super) fn run(&mut self, until: Duration, enough: impl Fn(&Cluster) -> bool) -> Result<bool, String> {
        while !enough(self) {
            let Some(event) = self.world.next(until) else {
                self.world.pass(until);
                return Ok(false);
            };
            self.events += 1;
            if self.events > MOST_EVENTS {
                return Err(format!("they go round in circles: {}", self.busy()));
            }
            let stirs = self.happen(event)?;
            self.look_around(stirs)?;
        }
        Ok(true)
    }

    /// Has everybody done what they wanted?
    pub(super) fn is_done(&self) -> bool {
        let wishes = self.clients.iter().flat_map(|client| &client.left).all(|left| *left.borrow() == 0);
        wishes && self.users.is_empty()
    }

    /// And have all of them, and the server, heard of everything?
    pub(super) fn is_quiet(&self) -> bool {
        let Some(server) = self.server.as_ref().filter(|server| !server.leaving) else { return false };
        let last = server.store.last_tid();
        self.is_done() && self.sessions().all(|session| session.last_tid() == last)
    }

    /// Who still wants something.
    pub(super) fn busy(&self) -> String {
        let users: Vec<String> = self.users.keys().map(|user| format!("u{user}")).collect();
        format!("users {users:?}")
    }

    /// Something happens; says whether others may have something to do because of it.
    fn happen(&mut self, event: Event) -> Result<bool, String> {
        match event {
            Event::Job(pid, job) => self.world.run_as(pid, job),
            Event::Serve(pid) => return Ok(self.world.serve(pid)),
            Event::Drive(end) => self.drive(end)?,
            Event::User(user) => self.go_on(user),
            Event::Dial(pid) => self.dial(pid),
            Event::Start(Node::Server) => self.start_server()?,
            Event::Start(Node::Client(number)) => self.start_client(number),
            Event::Misfortune(place) => self.strike(place)?,
            Event::Relief(place) => self.relieve(place),
        }
        Ok(true)
    }

    /// After everything that happens: who has something to do now, who must die, and is a rule broken?
    fn look_around(&mut self, stirs: bool) -> Result<(), String> {
        while let Some(pid) = self.world.dying() {
            let power = self.fate.bool();
            self.kill(pid, power)?;
        }
        if stirs {
            self.world.stir();
        }
        let world = self.world.clone();
        for (number, connection) in &mut self.connections {
            for is_client in [true, false] {
                if let Some(chair) = connection.chair(is_client)
                    && chair.woken.load(Ordering::SeqCst)
                {
                    visit(&world, chair, End { connection: *number, is_client }, world.time());
                }
            }
        }
        for (number, user) in &mut self.users {
            if user.woken.take() && !std::mem::replace(&mut user.planned, true) {
                world.soon(Event::User(*number));
            }
        }
        let broken =
            self.ledger.borrow().broken().cloned().or_else(|| world.with_disk(|disk| disk.take_broken()));
        broken.map_or(Ok(()), Err)
    }

    fn path(&self, machine: Machine) -> PathBuf {
        self.world.with_disk(|disk| disk.path(machine))
    }

    // The server.

    fn start_server(&mut self) -> Result<(), String> {
        if self.server.is_some() {
            return Ok(());
        }
        let pid = self.world.spawn(SERVER);
        let dir = self.server_dir();
        let config = StoreConfig { inline_max: self.scenario.inline_max, ..self.scenario.store.clone() };
        let opened = self.world.run_as(pid, || EmbeddedStore::open(&dir, config));
        if self.world.dying() == Some(pid) {
            drop(opened);
            return Ok(()); // it is being killed
        }
        match opened {
            Ok(store) => {
                let store = Arc::new(store);
                let shared: Arc<dyn Store> = store.clone();
                let config = self.scenario.server.clone();
                let service = self.world.run_as(pid, || Service::new(shared, config));
                self.world.note(format_args!("{pid} the server starts, at {}", store.last_tid()));
                self.server = Some(Server { pid, store, service, leaving: false });
            }
            Err(error) => {
                self.world.note(format_args!("{pid} the server can not start: {error}"));
                self.world.end(pid);
                self.world.bury(pid);
                if self.healed {
                    return Err(format!(
                        "the server can not start, although nothing is wrong any more: {error}"
                    ));
                }
                self.world.after(Duration::from_secs(1), Event::Start(Node::Server));
            }
        }
        Ok(())
    }

    pub(super) fn server_dir(&self) -> PathBuf {
        self.path(SERVER).join("store")
    }

    /// What the server has open, where it runs.
    pub(super) fn store(&self) -> Option<Arc<EmbeddedStore>> {
        self.server.as_ref().map(|server| server.store.clone())
    }

    pub(super) fn run_as_server<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let pid = self.server.as_ref()?.pid;
        Some(self.world.run_as(pid, act))
    }

    /// The server begins to stop, as its operator wants it.
    fn leave_server(&mut self) {
        if let Some(server) = &mut self.server
            && !std::mem::replace(&mut server.leaving, true)
        {
            self.world.note(format_args!("{} the server is stopping", server.pid));
            self.world.run_as(server.pid, || server.service.stop());
        }
    }

    /// The time for that is over: what is being finished is, and then it ends.
    fn stop_server(&mut self) {
        let Some(pid) = self.server.as_ref().filter(|server| server.leaving).map(|server| server.pid) else {
            return;
        };
        self.unseat(pid, false);
        if let Some(server) = self.server.take() {
            self.world.run_as(pid, || {
                server.store.close();
                drop(server);
            });
        }
        self.world.serve(pid);
        self.world.end(pid);
        self.world.bury(pid);
        self.world.note(format_args!("{pid} the server has stopped"));
    }

    // The clients.

    fn start_client(&mut self, number: usize) {
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
        let left: Vec<_> = client.left.clone();
        for (place, left) in left.into_iter().enumerate() {
            if *left.borrow() > 0 {
                self.begin_life(number, place, pid, &session, left);
            }
        }
        if let Some(client) = self.clients.get_mut(number) {
            client.process = Some(Process { pid, session });
        }
        self.world.soon(Event::Dial(pid));
    }

    fn begin_life(
        &mut self,
        client: usize,
        place: usize,
        pid: Pid,
        session: &Session,
        left: Rc<RefCell<usize>>,
    ) {
        let number = self.born;
        self.born += 1;
        let machine = self.clients.get(client).map_or(SERVER, |client| client.machine);
        let user = User {
            number,
            world: self.world.clone(),
            session: session.clone(),
            ledger: self.ledger.clone(),
            chance: chance_for(self.scenario.seed, &format!("user {client} {place} {}", *left.borrow())),
            objects: self.scenario.objects,
            largest: self.scenario.largest,
            packs: self.scenario.packs,
            directory: self.path(machine).join("files"),
            left,
        };
        let life = Box::pin(user.live());
        self.users.insert(number, Living { client, pid, woken: Arc::default(), planned: true, life });
        self.world.soon(Event::User(number));
    }

    fn go_on(&mut self, number: usize) {
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
    fn retire(&mut self, number: usize) {
        if self.users.values().any(|user| user.client == number) {
            return;
        }
        let Some(client) = self.clients.get(number) else { return };
        if client.left.iter().any(|left| *left.borrow() > 0)
            && let Some(pid) = client.process.as_ref().map(|process| process.pid)
        {
            self.end_client(number, pid);
            self.world.after(Duration::from_secs(1), Event::Start(Node::Client(number)));
        }
    }

    /// A client's process ends, in an orderly way.
    fn end_client(&mut self, number: usize, pid: Pid) {
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

    fn client_of(&self, pid: Pid) -> Option<(usize, &Process)> {
        self.clients.iter().enumerate().find_map(|(number, client)| {
            client.process.as_ref().filter(|process| process.pid == pid).map(|process| (number, process))
        })
    }

    fn dial(&mut self, pid: Pid) {
        let Some((_, process)) = self.client_of(pid) else { return };
        let session = process.session.clone();
        let now = self.world.time();
        let reachable = self.server.as_ref().filter(|server| !server.leaving && self.partition <= now);
        let Some(server) = reachable else {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            self.world.run_as(pid, || session.lost(&Ended::Stream(refused)));
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
            Seat::Server(Box::new(session::Session::new(service, Time::ZERO, wake)))
        });
        self.world.note(format_args!("c{number} {pid} is connected with {}, {manner:?}", server.pid));
        self.connections.insert(number, connection);
    }

    fn dial_again(&mut self, pid: Pid) {
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

    // Connections.

    fn drive(&mut self, end: End) -> Result<(), String> {
        let now = self.world.time();
        let world = self.world.clone();
        let Some(connection) = self.connections.get_mut(&end.connection) else { return Ok(()) };
        let Some(chair) = connection.chair(end.is_client) else { return Ok(()) };
        // A visit that was planned earlier than the one that has been made since.
        if chair.visit.is_none_or(|visit| visit > now) {
            return Ok(());
        }
        chair.visit = None;
        let pid = chair.pid;
        let net = &mut self.net;
        let driven = world.run_as(pid, || connection.drive(end.is_client, now, net));
        for said in connection.tap.said.iter_mut().flat_map(std::mem::take) {
            world.remark(format_args!("c{} {said}", end.connection));
        }
        if let Some(broken) = driven.broken {
            return Err(format!("c{}: {broken}", end.connection));
        }
        if let (Some(at), Some(chair)) = (driven.again, connection.chair(end.is_client)) {
            visit(&world, chair, end, at);
        }
        let other = End { is_client: !end.is_client, ..end };
        if let (Some(at), Some(chair)) = (driven.other, connection.chair(other.is_client)) {
            visit(&world, chair, other, at);
        }
        match driven.ended {
            Some(ended) => self.end_connection(end, &ended),
            None => Ok(()),
        }
    }

    /// A connection is over for one of its ends.
    fn end_connection(&mut self, end: End, ended: &Ended) -> Result<(), String> {
        if let Ended::Peer(error) = ended
            && error.is_breach()
        {
            return Err(format!(
                "c{}: one side says that the other has broken a rule: {error}",
                end.connection
            ));
        }
        let (world, now) = (self.world.clone(), self.world.time());
        world.note(format_args!("c{} is over for its {}: {ended}", end.connection, name(end.is_client)));
        let Some(connection) = self.connections.get_mut(&end.connection) else { return Ok(()) };
        let chair = connection.chair(end.is_client).take();
        let told = connection.leave(end.is_client, now);
        let other = End { is_client: !end.is_client, ..end };
        match connection.chair(other.is_client) {
            Some(chair) => visit(&world, chair, other, told),
            None => self.forget(end.connection),
        }
        let Some(chair) = chair else { return Ok(()) };
        let pid = chair.pid;
        if end.is_client
            && let Some((_, process)) = self.client_of(pid)
        {
            let session = process.session.clone();
            world.run_as(pid, || session.lost(ended));
        }
        world.run_as(pid, || drop(chair));
        if end.is_client {
            self.dial_again(pid);
        }
        Ok(())
    }

    fn forget(&mut self, number: usize) {
        if let Some(connection) = self.connections.remove(&number) {
            let counts = connection.tap.counts;
            self.counts.messages += counts.messages;
            self.counts.payload += counts.payload;
            self.counts.resumed += counts.resumed;
            self.counts.attached += counts.attached;
        }
    }

    /// A process has no connections any more. Their other ends learn it, or not.
    fn unseat(&mut self, pid: Pid, told: bool) {
        let (world, now) = (self.world.clone(), self.world.time());
        let numbers: Vec<usize> = self.connections.keys().copied().collect();
        for number in numbers {
            for is_client in [true, false] {
                let Some(connection) = self.connections.get_mut(&number) else { break };
                let Some(chair) = connection.chair(is_client).take_if(|chair| chair.pid == pid) else {
                    continue;
                };
                if !told {
                    connection.swallow(is_client);
                }
                let at = connection.leave(is_client, now);
                let other = End { connection: number, is_client: !is_client };
                match connection.chair(!is_client) {
                    Some(chair) => visit(&world, chair, other, at),
                    None => self.forget(number),
                }
                world.run_as(pid, || drop(chair));
            }
        }
    }

    // What goes wrong.

    /// A process dies without knowing, perhaps with its machine and all others on it.
    fn kill(&mut self, pid: Pid, power: bool) -> Result<(), String> {
        let machine = self.machine_of(pid);
        let mut dead = vec![pid];
        if power {
            let others = self.clients.iter().filter(|client| client.machine == machine);
            dead.extend(others.filter_map(|client| client.process.as_ref()).map(|process| process.pid));
            dead.sort_unstable();
            dead.dedup();
        }
        for pid in dead {
            self.end_without_knowing(pid, machine, !power)?;
        }
        if power {
            let lost = self.world.with_disk(|disk| disk.cut_power(machine)).map_err(broken_simulator)?;
            let (torn, undone) = lost;
            self.world
                .note(format_args!("{machine} loses its power: {torn} files torn, {undone} names undone"));
        }
        Ok(())
    }

    fn machine_of(&self, pid: Pid) -> Machine {
        self.client_of(pid)
            .and_then(|(number, _)| self.clients.get(number))
            .map_or(SERVER, |client| client.machine)
    }

    fn end_without_knowing(&mut self, pid: Pid, machine: Machine, told: bool) -> Result<(), String> {
        let world = self.world.clone();
        world.note(format_args!("{pid} dies"));
        self.deaths += 1;
        let photograph = world.with_disk(|disk| disk.photograph(machine)).map_err(broken_simulator)?;
        world.end(pid);
        self.unseat(pid, told);
        let users: Vec<usize> =
            self.users.iter().filter(|(_, user)| user.pid == pid).map(|(number, _)| *number).collect();
        for number in users {
            let user = self.users.remove(&number);
            world.run_as(pid, || drop(user));
        }
        let delay = Duration::from_millis(self.fate.u64(10..4000));
        if self.server.as_ref().is_some_and(|server| server.pid == pid) {
            if let Some(server) = self.server.take() {
                // Votes that wait have the store in hand, and are told now; nothing of that reaches anybody.
                world.run_as(pid, || {
                    server.store.close();
                    drop(server);
                });
            }
            world.after(delay, Event::Start(Node::Server));
        } else if let Some((number, _)) = self.client_of(pid) {
            if let Some(process) = self.clients.get_mut(number).and_then(|client| client.process.take()) {
                // What waits in it has it in hand, too.
                world.run_as(pid, || process.session.close("it is dead"));
            }
            if self
                .clients
                .get(number)
                .is_some_and(|client| client.left.iter().any(|left| *left.borrow() > 0))
            {
                world.after(delay, Event::Start(Node::Client(number)));
            }
        } else {
            // It died while it started.
            world.after(delay, Event::Start(Node::Server));
        }
        world.bury(pid);
        photograph.restore().map_err(broken_simulator)
    }

    fn strike(&mut self, place: usize) -> Result<(), String> {
        let Some(misfortune) = self.plan.get(place).copied().filter(|_| !self.healed) else { return Ok(()) };
        let now = self.world.time();
        self.world.note(format_args!("misfortune {place}: {misfortune}"));
        // Most of what happens to a connection happens while something is under way.
        let mut numbers: Vec<usize> = self.connections.keys().copied().collect();
        let is_busy = |number: &usize| self.connections.get(number).is_some_and(|found| found.tap.is_busy());
        if misfortune.whom % 4 > 0 && numbers.iter().any(is_busy) {
            numbers.retain(is_busy);
        }
        let number = numbers.get(misfortune.whom % numbers.len().max(1)).copied();
        let client =
            self.clients.iter().filter_map(|client| client.process.as_ref()).map(|process| process.pid);
        let clients: Vec<Pid> = client.collect();
        let client = clients.get(misfortune.whom % clients.len().max(1)).copied();
        let server = self.server.as_ref().map(|server| server.pid);
        match misfortune.kind {
            Kind::Cut => {
                if let Some(number) = number {
                    self.cut(number);
                }
            }
            Kind::HalfOpen { to_client } => {
                if let Some(connection) = number.and_then(|number| self.connections.get_mut(&number)) {
                    connection.swallow(to_client);
                }
            }
            Kind::Stick { to_client, millis } => {
                if let Some(connection) = number.and_then(|number| self.connections.get_mut(&number)) {
                    connection.stick(to_client, now + Duration::from_millis(millis));
                }
            }
            Kind::Partition { millis } => {
                let until = now + Duration::from_millis(millis);
                self.partition = self.partition.max(until);
                for connection in self.connections.values_mut() {
                    connection.stick(true, until);
                    connection.stick(false, until);
                }
            }
            Kind::KillClient | Kind::PowerClient => {
                if let Some(pid) = client {
                    self.kill(pid, misfortune.kind == Kind::PowerClient)?;
                }
            }
            Kind::KillServer | Kind::PowerServer => {
                if let Some(pid) = server {
                    self.kill(pid, misfortune.kind == Kind::PowerServer)?;
                }
            }
            Kind::StopServer => {
                self.leave_server();
                self.world.after(Duration::from_millis(500), Event::Relief(place));
            }
            Kind::FuseServer { steps } => self.world.with_disk(|disk| disk.light_fuse(SERVER, steps, false)),
            Kind::FuseClient { steps } => {
                if let Some(pid) = client {
                    let machine = self.machine_of(pid);
                    self.world.with_disk(|disk| disk.light_fuse(machine, steps, true));
                }
            }
            Kind::DiskFull { server, millis } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Full));
                self.world.after(Duration::from_millis(millis), Event::Relief(place));
            }
            Kind::DiskSlow { server, millis } => {
                let machine = self.struck(misfortune, server);
                let by = Duration::from_millis(millis / 4);
                self.world.with_disk(|disk| disk.slow_down(machine, by));
                self.world.after(Duration::from_millis(millis), Event::Relief(place));
            }
            Kind::DiskFails { server } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Failing));
                self.world.after(Duration::from_secs(20), Event::Relief(place));
            }
            Kind::ClockJumps { millis } => self.world.jump(millis),
        }
        Ok(())
    }

    fn struck(&self, misfortune: Misfortune, server: bool) -> Machine {
        if server { SERVER } else { Machine(1 + misfortune.whom % self.scenario.machines) }
    }

    fn cut(&mut self, number: usize) {
        let (world, now) = (self.world.clone(), self.world.time());
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let [to_server, to_client] = connection.cut(now, &mut self.net);
        for (is_client, told) in [(true, to_client), (false, to_server)] {
            if let Some(chair) = connection.chair(is_client) {
                visit(&world, chair, End { connection: number, is_client }, told);
            }
        }
    }

    fn relieve(&mut self, place: usize) {
        let Some(misfortune) = self.plan.get(place).copied() else { return };
        self.world.note(format_args!("misfortune {place} is over"));
        match misfortune.kind {
            Kind::DiskFull { server, .. } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Well));
            }
            Kind::DiskSlow { server, .. } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.slow_down(machine, Duration::ZERO));
            }
            Kind::DiskFails { server } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Well));
                // The operator starts a server again whose disk has failed.
                if server {
                    self.leave_server();
                    self.stop_server();
                    self.world.after(Duration::from_millis(100), Event::Start(Node::Server));
                }
            }
            Kind::StopServer => {
                self.stop_server();
                self.world.after(Duration::from_millis(100), Event::Start(Node::Server));
            }
            _ => {}
        }
    }

    /// Nothing is wrong any more: disks are well, everybody is up, and the network is what it should be.
    pub(super) fn heal(&mut self) {
        self.world.note(format_args!("everything is well from now on"));
        self.healed = true;
        self.partition = Duration::ZERO;
        for machine in 0..=self.scenario.machines {
            self.world.with_disk(|disk| disk.heal(Machine(machine)));
        }
        // A server whose disk has failed is started again.
        self.leave_server();
        self.stop_server();
        self.world.soon(Event::Start(Node::Server));
        let numbers: Vec<usize> = self.connections.keys().copied().collect();
        for number in numbers {
            self.cut(number);
        }
        for (number, client) in self.clients.iter().enumerate() {
            if client.process.is_none() && client.left.iter().any(|left| *left.borrow() > 0) {
                self.world.soon(Event::Start(Node::Client(number)));
            }
        }
    }

    /// Everybody says goodbye.
    pub(super) fn say_goodbye(&mut self) {
        self.world.note(format_args!("everybody says goodbye"));
        for client in &self.clients {
            if let Some(process) = &client.process {
                self.world.run_as(process.pid, || process.session.goodbye());
            }
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The sessions that there are.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.clients.iter().filter_map(|client| client.process.as_ref()).map(|process| &process.session)
    }

    /// Everything ends. What is left is on the disks.
    pub(super) fn end(&mut self) {
        let pids: Vec<(usize, Pid)> = self
            .clients
            .iter()
            .enumerate()
            .filter_map(|(number, client)| Some((number, client.process.as_ref()?.pid)))
            .collect();
        for (number, pid) in pids {
            self.end_client(number, pid);
        }
        self.leave_server();
        self.stop_server();
    }
}

fn name(is_client: bool) -> &'static str {
    if is_client { "client" } else { "server" }
}

/// An end is to be driven at a moment.
fn visit(world: &World, chair: &mut Chair, end: End, at: Duration) {
    if chair.visit.is_none_or(|visit| visit > at) {
        chair.visit = Some(at);
        world.after(at.saturating_sub(world.time()), Event::Drive(end));
    }
}

fn broken_simulator(error: std::io::Error) -> String {
    format!("the simulator itself has failed: {error}")
}
