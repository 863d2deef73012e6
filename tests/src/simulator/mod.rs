//! A cluster in one thread, simulated from one seed.
//!
//! All of blobferry is real except its transports: the protocol machines, the sessions on both
//! sides, the caches and the SQLite store, with their files in memory. What they use of the
//! operating system is simulated (see [`os`](blobferry_platform::os)): time, randomness, threads
//! and syncs. So is the network, which stalls, splits and loses bytes. Processes are killed,
//! machines lose their power and all that was not synced, disks fill up and fail, clocks jump.
//!
//! The seed decides everything: the same seed gives the same trace, byte by byte. During the
//! simulation and at its end, all answers are compared with what blobferry promises:
//!
//! * Committed data exists, with its exact bytes, at its tid, for ever. Other data does not exist,
//!   and no transaction exists in part (`ledger`, `invariants`).
//! * The history of commits and reads is strictly serializable ([`history`]).
//! * All invalidations arrive in order, before any answer that exposes the commit (`wire_monitor`,
//!   `invariants`).
//! * A blob is downloaded once per cache (`disk`). Credit is respected, and every request is
//!   answered once (`wire_monitor`).
//! * When no fault is left, all users finish. When all clients have left, nothing is left over.
//!
//! ```
//! use blobferry_tests::simulator::{Scenario, run};
//!
//! let report = run(&Scenario::of(7)).map_err(|failure| failure.to_string())?;
//! assert!(report.commits > 0);
//! # Ok::<(), String>(())
//! ```

mod answer;
mod cluster;
mod disk;
mod fault_plan;
pub mod history;
mod invariants;
mod ledger;
pub mod minimise;
mod network;
mod users;
mod wire_monitor;
mod world;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use blobferry_platform::os::simulation;
use blobferry_protocol::{Config, Digest, Limits};
use blobferry_session::server::ServerConfig;
use blobferry_store::StoreConfig;

use self::cluster::Cluster;
use self::disk::Disk;
pub use self::fault_plan::{Fault, FaultKind};
use self::world::{World, rng_for};

/// The simulated time in which faults happen.
const FAULTY_TIME: Duration = Duration::from_secs(60);
/// The simulated time after that in which all users must finish.
const RECOVERY_TIME: Duration = Duration::from_secs(900);
/// The simulated time after that in which all leftovers must go.
const CLOSING_TIME: Duration = Duration::from_secs(200);

/// A simulation. All of it follows from the seed; to find the cause of a failure, parts can be left
/// out.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// The number of clients, each a process.
    pub clients: usize,
    /// The number of machines that the clients share; each has a cache.
    pub machines: usize,
    /// The number of users of each client.
    pub users: usize,
    /// The number of operations of each user.
    pub operations: usize,
    /// The number of objects.
    pub objects: u64,
    /// The size of the largest blob, in bytes.
    pub largest: u64,
    /// The size of the largest blob that the server keeps in its database, in bytes.
    pub inline_max: u64,
    /// Whether users pack the store from time to time.
    pub runs_pack: bool,
    /// Whether faults of all kinds happen, and often.
    pub rough: bool,
    /// The faults of the plan that are left out, by their numbers.
    pub without: BTreeSet<usize>,
    client: Config,
    server: ServerConfig,
    store: StoreConfig,
}

impl Scenario {
    /// Returns the scenario of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Scenario {
        let mut rng = rng_for(seed, "scenario");
        let machines = rng.usize(1..=3);
        let mut limits = || Limits {
            chunk: [500, 4 << 10, 64 << 10][rng.usize(..3)],
            transfer_window: [3 << 10, 16 << 10, 256 << 10][rng.usize(..3)],
            connection_window: [20 << 10, 64 << 10, 1 << 20][rng.usize(..3)],
            transfers: rng.u32(1..20),
            ..Limits::default()
        };
        let (client, server) = (limits(), limits());
        let connection = |limits| Config {
            limits,
            ping_after: Duration::from_secs(5),
            silence_limit: Duration::from_secs(15),
            ..Config::default()
        };
        Scenario {
            seed,
            clients: machines * rng.usize(1..=2),
            machines,
            users: rng.usize(1..=3),
            operations: rng.usize(2..40),
            objects: rng.u64(2..8),
            largest: [2 << 10, 30 << 10, 200 << 10][rng.usize(..3)],
            inline_max: [0, 1 << 10, 64 << 10][rng.usize(..3)],
            runs_pack: rng.u8(..4) == 0,
            rough: false,
            without: BTreeSet::new(),
            client: connection(client),
            server: ServerConfig {
                connection: connection(server),
                detach_timeout: Duration::from_secs([1, 20, 60][rng.usize(..3)]),
                ..ServerConfig::default()
            },
            store: StoreConfig {
                vote_timeout: Duration::from_secs([5, 30][rng.usize(..2)]),
                lock_timeout: Duration::from_secs([5, 30][rng.usize(..2)]),
                sync_ahead: [0, 10 << 10, 50 << 10][rng.usize(..3)],
                ..StoreConfig::default()
            },
        }
    }

    /// Returns a scenario with more work and with faults of all kinds.
    #[must_use]
    pub fn rough(seed: u64) -> Scenario {
        let usual = Scenario::of(seed);
        let operations = 30 + usual.operations;
        let clients = usual.machines * 2;
        Scenario { operations, clients, users: 3, largest: 300 << 10, rough: true, runs_pack: false, ..usual }
    }

    /// Returns the plan of its faults.
    #[must_use]
    pub fn plan(&self) -> Vec<Fault> {
        fault_plan::plan(&mut rng_for(self.seed, "misfortune"), FAULTY_TIME, self.rough)
    }

    /// Returns the command line options that describe this scenario, except the seed.
    #[must_use]
    pub fn options(&self) -> String {
        let whole = if self.rough { Scenario::rough(self.seed) } else { Scenario::of(self.seed) };
        let mut options = String::from(if self.rough { " --rough" } else { "" });
        let mut add = |option: &str, is: usize, was: usize| {
            if is != was {
                options += &format!(" --{option} {is}");
            }
        };
        add("clients", self.clients, whole.clients);
        add("users", self.users, whole.users);
        add("operations", self.operations, whole.operations);
        if !self.without.is_empty() {
            let without: Vec<String> = self.without.iter().map(ToString::to_string).collect();
            options += &format!(" --without {}", without.join(","));
        }
        options
    }
}

/// What one or more simulations did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The number of simulations.
    pub seeds: u64,
    /// The simulated time.
    pub simulated: Duration,
    /// Transactions that were committed.
    pub commits: u64,
    /// Transactions that found conflicts.
    pub conflicts: u64,
    /// Operations whose place in the history was checked.
    pub operations: u64,
    /// Blobs that were read and compared.
    pub blobs: u64,
    /// Messages between clients and servers.
    pub messages: u64,
    /// Bytes of payload.
    pub payload: u64,
    /// Transfers that were resumed in the middle of a blob.
    pub resumed: u64,
    /// Transactions that were attached to another connection.
    pub attached: u64,
    /// Processes that were killed.
    pub deaths: u64,
    /// The digest and the number of lines of the last simulation's trace.
    pub trace: Option<(Digest, u64)>,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Report) {
        self.seeds += other.seeds;
        self.simulated += other.simulated;
        self.commits += other.commits;
        self.conflicts += other.conflicts;
        self.operations += other.operations;
        self.blobs += other.blobs;
        self.messages += other.messages;
        self.payload += other.payload;
        self.resumed += other.resumed;
        self.attached += other.attached;
        self.deaths += other.deaths;
        self.trace = other.trace;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds, {:.1} simulated hours: {} commits, {} conflicts, {} operations in histories, {} blobs read, {} \
             messages, {:.1} MB of payload, {} transfers and {} transactions gone on with, {} deaths",
            self.seeds,
            self.simulated.as_secs_f64() / 3600.0,
            self.commits,
            self.conflicts,
            self.operations,
            self.blobs,
            self.messages,
            self.payload as f64 / 1e6,
            self.resumed,
            self.attached,
            self.deaths,
        )
    }
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The scenario.
    pub scenario: Scenario,
    /// Which promise, and how.
    pub what: String,
    /// The trace until then, if it was requested.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.scenario.seed, self.what)?;
        let options = self.scenario.options();
        write!(f, "again: simulate --from {} --seeds 1 --trace{options}", self.scenario.seed)
    }
}

/// Runs a simulation, and checks it.
///
/// # Errors
/// The first promise that was broken.
pub fn run(scenario: &Scenario) -> Result<Report, Box<Failure>> {
    simulate(scenario, false).map(|(report, _)| report)
}

/// Runs a simulation, checks it, and returns its trace as text.
///
/// # Errors
/// The first promise that was broken.
pub fn run_traced(scenario: &Scenario) -> Result<(Report, Vec<String>), Box<Failure>> {
    simulate(scenario, true)
}

fn simulate(scenario: &Scenario, traced: bool) -> Result<(Report, Vec<String>), Box<Failure>> {
    let failed = |what, trace| Box::new(Failure { scenario: scenario.clone(), what, trace });
    let no_room =
        |error: std::io::Error| failed(format!("no directory for the simulation: {error}"), Vec::new());
    let memory = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new();
    let root = match memory.is_dir() {
        true => builder().prefix("blobferry-simulated-").tempdir_in(memory),
        false => builder().prefix("blobferry-simulated-").tempdir(),
    };
    let root = root.map_err(no_room)?;
    let disk = Disk::new(root.path(), rng_for(scenario.seed, "disk")).map_err(no_room)?;
    let world = World::new(scenario.seed, disk, traced);
    let _entered = simulation::enter(world.clone());
    let plan = scenario.plan().into_iter().enumerate();
    let plan = plan.map(|(place, fault)| match scenario.without.contains(&place) {
        true => Fault { at: Duration::MAX / 4, ..fault },
        false => fault,
    });
    let mut cluster = Cluster::new(world.clone(), scenario, plan.collect());
    let result = play(&mut cluster, &world, scenario);
    let lines = world.take_lines();
    cluster.end();
    match result {
        Ok(report) => Ok((report, lines)),
        Err(what) => Err(failed(what, lines)),
    }
}

fn play(cluster: &mut Cluster, world: &Rc<World>, scenario: &Scenario) -> Result<Report, String> {
    cluster.run(FAULTY_TIME, Cluster::is_done)?;
    cluster.heal();
    if !cluster.run(world.time() + RECOVERY_TIME, Cluster::is_settled)? {
        return Err(format!(
            "no fault is left, and yet the users do not finish in {} s: {}",
            RECOVERY_TIME.as_secs(),
            cluster.busy()
        ));
    }
    let vote = invariants::vote_for_all_objects(cluster, scenario)?;
    if !cluster.run(world.time() + CLOSING_TIME, |_| vote.is_decided())? {
        return Err(
            "a vote for all objects is not decided, although no other transaction wants them".to_owned()
        );
    }
    vote.check()?;
    let report = invariants::committed_data_is_there(cluster)?;
    invariants::all_invalidations_arrived(cluster)?;
    cluster.say_goodbye();
    if !cluster.run(world.time() + CLOSING_TIME, |cluster| cluster.connections() == 0)? {
        return Err(format!(
            "{} connections do not end, although all have said goodbye",
            cluster.connections()
        ));
    }
    // The server now gives up detached transactions and whatever waits for a deadline.
    cluster.run(world.time() + CLOSING_TIME, |_| false)?;
    invariants::server_is_empty(cluster)?;
    cluster.end();
    invariants::disks_are_sound(cluster, scenario)?;
    Ok(Report { trace: Some(world.trace_digest()), simulated: world.time(), ..report })
}
