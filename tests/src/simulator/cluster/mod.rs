//! The simulated cluster: one server, its clients, the connections between them, and the event
//! loop.

mod clients;
mod connections;
mod faults;
mod server;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blobferry_platform::sync::Mutex;
use blobferry_session::client::{Invalidation, Session};
use blobferry_session::server::ServerCore;
use blobferry_store::{SqliteStore, Store};
use fastrand::Rng;

use super::Scenario;
use super::answer::WakeFlag;
use super::fault_plan::Fault;
use super::ledger::Ledger;
use super::network::{Connection, Endpoint};
use super::users::Backlog;
use super::wire_monitor::Counts;
use super::world::{End, Event, Machine, Node, Pid, World, rng_for};

/// The server's machine.
const SERVER: Machine = Machine(0);

/// The number of events after which a simulation counts as stuck.
const MAX_EVENTS: u64 = 5_000_000;

/// The invalidations that a session has received.
pub(super) type ReceivedInvalidations = Arc<Mutex<Vec<Invalidation>>>;

struct Server {
    pid: Pid,
    store: Arc<SqliteStore>,
    service: ServerCore,
    /// The server is about to stop, and refuses new connections.
    stopping: bool,
}

struct Client {
    machine: Machine,
    /// What its users have left to do.
    backlog: Vec<Rc<RefCell<Backlog>>>,
    process: Option<Process>,
}

impl Client {
    fn has_work(&self) -> bool {
        self.backlog.iter().any(|backlog| !backlog.borrow().is_done())
    }
}

struct Process {
    pid: Pid,
    session: Session,
}

struct RunningUser {
    client: usize,
    pid: Pid,
    woken: Arc<WakeFlag>,
    scheduled: bool,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

/// See the [module](self).
pub(super) struct Cluster {
    pub(super) world: Rc<World>,
    pub(super) ledger: Rc<RefCell<Ledger>>,
    scenario: Scenario,
    plan: Vec<Fault>,
    server: Option<Server>,
    clients: Vec<Client>,
    connections: BTreeMap<usize, Connection>,
    connections_made: usize,
    users: BTreeMap<usize, RunningUser>,
    /// The number of users that were started.
    users_started: usize,
    /// All faults are over.
    pub(super) healed: bool,
    /// The number of connections to cut as soon as they bring a commit.
    commits_to_cut: usize,
    /// The time before which no client can connect to the server.
    partitioned_until: Duration,
    pub(super) invalidations: Vec<ReceivedInvalidations>,
    pub(super) counts: Counts,
    pub(super) deaths: u64,
    events: u64,
    net_rng: Rng,
    fault_rng: Rng,
}

impl Cluster {
    pub(super) fn new(world: Rc<World>, scenario: &Scenario, plan: Vec<Fault>) -> Cluster {
        let backlog = || Rc::new(RefCell::new(Backlog::of(scenario.operations)));
        let clients = (0..scenario.clients).map(|number| Client {
            machine: Machine(1 + number % scenario.machines),
            backlog: (0..scenario.users).map(|_| backlog()).collect(),
            process: None,
        });
        let clients = clients.collect();
        let cluster = Cluster {
            ledger: Rc::default(),
            net_rng: rng_for(scenario.seed, "network"),
            fault_rng: rng_for(scenario.seed, "fate"),
            scenario: scenario.clone(),
            server: None,
            clients,
            connections: BTreeMap::new(),
            connections_made: 0,
            users: BTreeMap::new(),
            users_started: 0,
            healed: false,
            commits_to_cut: 0,
            partitioned_until: Duration::ZERO,
            invalidations: Vec::new(),
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
        for (place, fault) in cluster.plan.iter().enumerate() {
            cluster.world.after(fault.at, Event::Fault(place));
        }
        cluster
    }

    /// Handles events until `enough` holds, or until the time `until`. Returns whether `enough`
    /// holds.
    ///
    /// Returns an error if a rule was broken.
    pub(super) fn run(&mut self, until: Duration, enough: impl Fn(&Cluster) -> bool) -> Result<bool, String> {
        while !enough(self) {
            let Some(event) = self.world.next(until) else {
                self.world.pass(until);
                return Ok(false);
            };
            self.events += 1;
            if self.events > MAX_EVENTS {
                return Err(format!("the simulation does not end: {}", self.busy()));
            }
            let wakes = self.handle(event)?;
            self.after_event(wakes)?;
        }
        Ok(true)
    }

    /// Returns whether all users have finished.
    pub(super) fn is_done(&self) -> bool {
        !self.clients.iter().any(Client::has_work) && self.users.is_empty()
    }

    /// Returns whether all users have finished, and all sessions are up to date with the server.
    pub(super) fn is_settled(&self) -> bool {
        let Some(server) = self.server.as_ref().filter(|server| !server.stopping) else { return false };
        let last = server.store.last_tid();
        self.is_done() && self.sessions().all(|session| session.last_tid() == last)
    }

    /// Describes the users that have not finished.
    pub(super) fn busy(&self) -> String {
        let users: Vec<String> = self.users.keys().map(|user| format!("u{user}")).collect();
        format!("users {users:?}")
    }

    /// Handles an event. Returns whether it may give other processes something to do.
    fn handle(&mut self, event: Event) -> Result<bool, String> {
        match event {
            Event::Job(pid, job) => self.world.run_as(pid, job),
            Event::RunServices(pid) => return Ok(self.world.run_services(pid)),
            Event::Drive(end) => self.drive(end)?,
            Event::User(user) => self.resume_user(user),
            Event::Dial(pid) => self.dial(pid),
            Event::Start(Node::Server) => self.start_server()?,
            Event::Start(Node::Client(number)) => self.start_client(number),
            Event::Fault(place) => self.inject(place)?,
            Event::FaultEnds(place) => self.end_fault(place),
        }
        Ok(true)
    }

    /// Does what every event entails: kills processes, schedules what was woken, and checks the
    /// rules.
    fn after_event(&mut self, wakes: bool) -> Result<(), String> {
        while let Some(pid) = self.world.dying() {
            let power = self.fault_rng.bool();
            self.kill(pid, power)?;
        }
        if wakes {
            self.world.wake_services();
        }
        let world = self.world.clone();
        for (number, connection) in &mut self.connections {
            for is_client in [true, false] {
                if let Some(endpoint) = connection.endpoint(is_client)
                    && endpoint.woken.load(Ordering::SeqCst)
                {
                    schedule_drive(&world, endpoint, End { connection: *number, is_client }, world.time());
                }
            }
        }
        for (number, user) in &mut self.users {
            if user.woken.take() && !std::mem::replace(&mut user.scheduled, true) {
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

    pub(super) fn server_dir(&self) -> PathBuf {
        self.path(SERVER).join("store")
    }

    /// Returns the server's store if the server runs.
    pub(super) fn store(&self) -> Option<Arc<SqliteStore>> {
        self.server.as_ref().map(|server| server.store.clone())
    }

    pub(super) fn run_as_server<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let pid = self.server.as_ref()?.pid;
        Some(self.world.run_as(pid, act))
    }

    /// Ends all faults: disks, processes and the network work from now on.
    pub(super) fn heal(&mut self) {
        self.world.note(format_args!("all faults are over"));
        self.healed = true;
        (self.partitioned_until, self.commits_to_cut) = (Duration::ZERO, 0);
        for machine in 0..=self.scenario.machines {
            self.world.with_disk(|disk| disk.heal(Machine(machine)));
        }
        // A server whose disk has failed needs a restart.
        self.begin_server_stop();
        self.stop_server();
        self.world.soon(Event::Start(Node::Server));
        let numbers: Vec<usize> = self.connections.keys().copied().collect();
        for number in numbers {
            self.cut(number);
        }
        for (number, client) in self.clients.iter().enumerate() {
            if client.process.is_none() && client.has_work() {
                self.world.soon(Event::Start(Node::Client(number)));
            }
        }
    }

    /// Lets every client send a goodbye.
    pub(super) fn say_goodbye(&mut self) {
        self.world.note(format_args!("all clients say goodbye"));
        for client in &self.clients {
            if let Some(process) = &client.process {
                self.world.run_as(process.pid, || process.session.goodbye());
            }
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Returns the sessions of all running clients.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.clients.iter().filter_map(|client| client.process.as_ref()).map(|process| &process.session)
    }

    /// Ends all processes. Only the disks are left.
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
        self.begin_server_stop();
        self.stop_server();
    }
}

/// Schedules an end of a connection to be driven at the time `at`.
fn schedule_drive(world: &World, endpoint: &mut Endpoint, end: End, at: Duration) {
    if endpoint.next_drive.is_none_or(|planned| planned > at) {
        endpoint.next_drive = Some(at);
        world.after(at.saturating_sub(world.time()), Event::Drive(end));
    }
}
