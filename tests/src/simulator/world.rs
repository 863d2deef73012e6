//! The simulated operating system: time, randomness, processes and the queue of events.
//!
//! All randomness comes from here, out of one seed. Each purpose has a random number generator of
//! its own. So leaving out one thing (a fault, a user) changes as little as possible of the rest.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use blobferry_platform::os::files::Step;
use blobferry_platform::os::simulation::Simulation;
use blobferry_platform::os::{Job, Next};
use fastrand::Rng;

use super::disk::Disk;

/// The time of day at the start of a simulation: 2026-01-01, since 1970.
const START_TIME: Duration = Duration::from_secs(1_767_225_600);

/// The free space of every disk, in bytes. A disk that is full refuses writes all the same.
const FREE_BYTES: u64 = 1 << 40;

/// A process. A restarted process has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pid(pub(super) usize);

/// A machine: its processes share a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Machine(pub(super) usize);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

/// An event that is scheduled.
pub(super) enum Event {
    /// A process runs a job.
    Job(Pid, Job),
    /// A process runs its services.
    RunServices(Pid),
    /// An end of a connection is driven.
    Drive(End),
    /// A user is polled.
    User(usize),
    /// A client without a connection connects to the server.
    Dial(Pid),
    /// A process is started again.
    Start(Node),
    /// A fault of the plan begins.
    Fault(usize),
    /// A fault of the plan ends.
    FaultEnds(usize),
}

/// A process's role in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Server,
    Client(usize),
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) connection: usize,
    pub(super) is_client: bool,
}

type Service = Box<dyn FnMut() -> Next + Send>;

struct Process {
    machine: Machine,
    alive: bool,
    /// The jobs that it had not run when it ended.
    left: Vec<Job>,
    services: Vec<Service>,
    /// When the services run next.
    next_run: Option<Duration>,
}

struct Inner {
    now: Duration,
    /// By how many milliseconds the time of day is off.
    jump: i64,
    count: u64,
    queue: BTreeMap<(Duration, u32, u64), Event>,
    processes: Vec<Process>,
    current: Option<Pid>,
    /// The process that must be killed at once: its countdown ended in the middle of a step.
    dying: Option<Pid>,
    rng: Rng,
    pace: Rng,
    disk: Disk,
    trace: Trace,
}

/// See the [module](self).
pub(super) struct World {
    start: Instant,
    inner: RefCell<Inner>,
}

/// What has happened: always as a digest, and as text if it was requested.
#[derive(Default)]
struct Trace {
    hasher: blake3::Hasher,
    lines: Option<Vec<String>>,
    count: u64,
}

/// Returns the random number generator for one purpose. The purpose is a part of what a seed means:
/// another text gives other simulations.
pub(super) fn rng_for(seed: u64, purpose: &str) -> Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    Rng::with_seed(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// Returns a line without the random names of temporary files.
fn without_temp_names(line: &str) -> String {
    let mut line = line.to_owned();
    for before in ["blobferry-simulated-", "/blob-", "tmp/blobferry-"] {
        let parts: Vec<&str> = line.split(before).collect();
        let rest =
            parts.iter().skip(1).map(|part| part.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
        let rest: Vec<&str> = rest.collect();
        line = std::iter::once(parts.first().copied().unwrap_or_default())
            .chain(rest)
            .collect::<Vec<_>>()
            .join(before);
    }
    line
}

impl World {
    pub(super) fn new(seed: u64, disk: Disk, traced: bool) -> Rc<World> {
        let inner = Inner {
            now: Duration::ZERO,
            jump: 0,
            count: 0,
            queue: BTreeMap::new(),
            processes: Vec::new(),
            current: None,
            dying: None,
            rng: rng_for(seed, "the system's chance"),
            pace: rng_for(seed, "pace"),
            disk,
            trace: Trace { lines: traced.then(Vec::new), ..Trace::default() },
        };
        Rc::new(World { start: Instant::now(), inner: RefCell::new(inner) })
    }

    /// Returns the simulated time since the start.
    pub(super) fn time(&self) -> Duration {
        self.inner.borrow().now
    }

    /// Returns a number that grows with every event and call. It orders operations.
    pub(super) fn moment(&self) -> u64 {
        let mut inner = self.inner.borrow_mut();
        inner.count += 1;
        inner.count
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.inner.borrow_mut();
        let line = without_temp_names(&format!("{:>12.6} {what}", inner.now.as_secs_f64()));
        inner.trace.count += 1;
        inner.trace.hasher.update(line.as_bytes()).update(b"\n");
        if let Some(lines) = &mut inner.trace.lines {
            lines.push(line);
        }
    }

    /// Returns whether the trace was requested as text.
    pub(super) fn has_trace(&self) -> bool {
        self.inner.borrow().trace.lines.is_some()
    }

    /// Adds a line to the text of the trace, but not to its digest.
    pub(super) fn remark(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.inner.borrow_mut();
        let line = without_temp_names(&format!("{:>12.6}   {what}", inner.now.as_secs_f64()));
        if let Some(lines) = &mut inner.trace.lines {
            lines.push(line);
        }
    }

    /// Returns the digest of the trace, and the number of its lines.
    pub(super) fn trace_digest(&self) -> (blobferry_protocol::Digest, u64) {
        let inner = self.inner.borrow();
        (blobferry_protocol::Digest(*inner.trace.hasher.finalize().as_bytes()), inner.trace.count)
    }

    /// Takes the text of the trace, if it was requested.
    pub(super) fn take_lines(&self) -> Vec<String> {
        self.inner.borrow_mut().trace.lines.take().unwrap_or_default()
    }

    /// Schedules an event. Events at the same time happen in a random order.
    pub(super) fn after(&self, delay: Duration, event: Event) {
        self.inner.borrow_mut().after(delay, event);
    }

    /// Schedules an event after a random, very short delay.
    pub(super) fn soon(&self, event: Event) {
        let mut inner = self.inner.borrow_mut();
        let delay = inner.scheduling_delay();
        inner.after(delay, event);
    }

    /// Takes the next event if it is due by the time `until`.
    pub(super) fn next(&self, until: Duration) -> Option<Event> {
        let mut inner = self.inner.borrow_mut();
        let key = *inner.queue.first_key_value()?.0;
        if key.0 > until {
            return None;
        }
        inner.now = inner.now.max(key.0);
        inner.queue.remove(&key)
    }

    /// Advances the time without an event.
    pub(super) fn pass(&self, until: Duration) {
        let mut inner = self.inner.borrow_mut();
        inner.now = inner.now.max(until);
    }

    /// Starts a process.
    pub(super) fn spawn(&self, machine: Machine) -> Pid {
        let mut inner = self.inner.borrow_mut();
        inner.processes.push(Process {
            machine,
            alive: true,
            left: Vec::new(),
            services: Vec::new(),
            next_run: None,
        });
        Pid(inner.processes.len() - 1)
    }

    /// Runs a closure as a process.
    pub(super) fn run_as<T>(&self, pid: Pid, act: impl FnOnce() -> T) -> T {
        let before = self.inner.borrow_mut().current.replace(pid);
        let done = act();
        self.inner.borrow_mut().current = before;
        done
    }

    /// Ends a process: from now on it changes nothing.
    pub(super) fn end(&self, pid: Pid) {
        let mut inner = self.inner.borrow_mut();
        let is_its = |event: &Event| matches!(event, Event::Job(of, _) if *of == pid);
        let keys: Vec<_> =
            inner.queue.iter().filter(|(_, event)| is_its(event)).map(|(key, _)| *key).collect();
        let mut left: Vec<Job> = Vec::new();
        for key in keys {
            if let Some(Event::Job(_, job)) = inner.queue.remove(&key) {
                left.push(job);
            }
        }
        if let Some(process) = inner.processes.get_mut(pid.0) {
            (process.alive, process.left) = (false, left);
        }
        inner.dying = inner.dying.filter(|dying| *dying != pid);
    }

    /// Runs the remaining jobs and services of an ended process, without effect, so that they free
    /// their memory. The process's own values must be dropped before.
    pub(super) fn drain(&self, pid: Pid) {
        loop {
            let mut inner = self.inner.borrow_mut();
            let Some(process) = inner.processes.get_mut(pid.0) else { return };
            let (left, mut services) =
                (std::mem::take(&mut process.left), std::mem::take(&mut process.services));
            drop(inner);
            if left.is_empty() && services.is_empty() {
                return;
            }
            self.run_as(pid, || {
                left.into_iter().for_each(|job| job());
                for step in &mut services {
                    while step() == Next::Now {}
                }
                drop(services);
            });
        }
    }

    /// Returns the process that must be killed at once.
    pub(super) fn dying(&self) -> Option<Pid> {
        self.inner.borrow().dying
    }

    /// Runs the services of a process. Returns whether they had anything to do.
    pub(super) fn run_services(&self, pid: Pid) -> bool {
        let mut services = {
            let mut inner = self.inner.borrow_mut();
            let Some(process) = inner.processes.get_mut(pid.0).filter(|process| process.alive) else {
                return false;
            };
            process.next_run = None;
            let mut services = std::mem::take(&mut process.services);
            inner.pace.shuffle(&mut services);
            services
        };
        let (mut next, mut did) = (None, false);
        self.run_as(pid, || {
            services.retain_mut(|step| {
                let found = step();
                did |= matches!(found, Next::Now | Next::Over);
                next = match (found, next) {
                    (Next::Now, _) => Some(self.start),
                    (Next::At(at), None) => Some(at),
                    (Next::At(at), Some(other)) => Some(at.min(other)),
                    (Next::Waits | Next::Over, next) => next,
                };
                found != Next::Over
            });
        });
        let mut inner = self.inner.borrow_mut();
        if let Some(process) = inner.processes.get_mut(pid.0) {
            // The services may have started others meanwhile.
            services.append(&mut process.services);
            process.services = services;
        }
        if let Some(at) = next {
            let delay = at.saturating_duration_since(self.start).saturating_sub(inner.now);
            inner.schedule_services(pid, delay);
        }
        did
    }

    /// Schedules the services of all processes: an event may have given them something to do.
    pub(super) fn wake_services(&self) {
        let mut inner = self.inner.borrow_mut();
        for pid in 0..inner.processes.len() {
            let serves =
                inner.processes.get(pid).is_some_and(|found| found.alive && !found.services.is_empty());
            if serves {
                inner.schedule_services(Pid(pid), Duration::ZERO);
            }
        }
    }

    /// Shifts the time of day.
    pub(super) fn jump(&self, millis: i64) {
        self.inner.borrow_mut().jump += millis;
    }

    /// Calls a closure with the disks.
    pub(super) fn with_disk<T>(&self, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(&mut self.inner.borrow_mut().disk)
    }

    /// Suspends a user for a time.
    pub(super) fn sleep(self: &Rc<World>, user: usize, delay: Duration) -> Sleep {
        let until = self.time() + delay;
        self.after(delay, Event::User(user));
        Sleep { world: self.clone(), until }
    }
}

impl Inner {
    fn after(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        let key = (self.now + delay, self.pace.u32(..), self.count);
        self.queue.insert(key, event);
    }

    /// Returns a random delay before a thread runs.
    fn scheduling_delay(&mut self) -> Duration {
        Duration::from_micros(match self.pace.u8(..) {
            0 => self.pace.u64(..20_000),
            1..32 => self.pace.u64(..1000),
            _ => self.pace.u64(..50),
        })
    }

    /// Returns a random additional delay if the machine's disk is slow.
    fn disk_delay(&mut self, pid: Pid) -> Duration {
        let machine = self.processes.get(pid.0).map(|process| process.machine);
        let slow = machine.map_or(Duration::ZERO, |machine| self.disk.slowness(machine));
        if slow.is_zero() { slow } else { slow.mul_f64(self.pace.f64()) }
    }

    /// Schedules the services of a process within `delay` and a random time.
    fn schedule_services(&mut self, pid: Pid, delay: Duration) {
        let slow = self.disk_delay(pid);
        let delay = delay + self.scheduling_delay() + slow;
        let at = self.now + delay;
        let Some(process) = self.processes.get_mut(pid.0) else { return };
        if !slow.is_zero() && process.next_run.is_some() {
            return; // another call would not make the services faster
        }
        if process.next_run.is_none_or(|next| next > at) {
            process.next_run = Some(at);
            self.after(delay, Event::RunServices(pid));
        }
    }
}

impl Simulation for World {
    fn now(&self) -> Instant {
        self.start + self.time()
    }

    fn unix_time(&self) -> Duration {
        let inner = self.inner.borrow();
        let jump = Duration::from_millis(inner.jump.unsigned_abs());
        let time = START_TIME + inner.now;
        if inner.jump < 0 { time.saturating_sub(jump) } else { time + jump }
    }

    fn random(&self, bytes: &mut [u8]) {
        self.inner.borrow_mut().rng.fill(bytes);
    }

    fn boot(&self) -> [u8; 16] {
        let inner = self.inner.borrow();
        let machine = inner.current.and_then(|pid| inner.processes.get(pid.0)).map(|process| process.machine);
        let boot = machine.map_or(0, |machine| inner.disk.boots(machine));
        u128::from(boot + 1).to_be_bytes()
    }

    fn is_quick(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let slow = inner.current.is_some_and(|pid| !inner.disk_delay(pid).is_zero());
        !slow && inner.pace.u8(..4) > 0
    }

    fn free(&self) -> u64 {
        FREE_BYTES
    }

    fn run(&self, job: Job) {
        let mut inner = self.inner.borrow_mut();
        let Some(pid) = inner.current else { return };
        // One in four jobs uses the disk.
        let slow = if inner.pace.u8(..4) == 0 { inner.disk_delay(pid) } else { Duration::ZERO };
        let delay = inner.scheduling_delay() + slow;
        match inner.processes.get_mut(pid.0) {
            Some(process) if !process.alive => process.left.push(job),
            _ => inner.after(delay, Event::Job(pid, job)),
        }
    }

    fn serve(&self, step: Service) {
        let mut inner = self.inner.borrow_mut();
        let Some(pid) = inner.current else { return };
        if let Some(process) = inner.processes.get_mut(pid.0).filter(|process| process.alive) {
            process.services.push(step);
            inner.schedule_services(pid, Duration::ZERO);
        }
    }

    fn file(&self, step: Step<'_>) -> io::Result<usize> {
        let mut guard = self.inner.borrow_mut();
        let inner = &mut *guard;
        let ended = || Err(io::Error::other("the process has ended"));
        let Some(pid) = inner.current else { return ended() };
        let Some(process) = inner.processes.get(pid.0).filter(|process| process.alive) else {
            return ended();
        };
        if inner.dying == Some(pid) {
            return ended();
        }
        let machine = process.machine;
        if inner.disk.countdown_ends(machine, step) {
            inner.dying = Some(pid);
            return ended();
        }
        inner.disk.step(machine, pid, step)
    }
}

/// See [`World::sleep`].
pub(super) struct Sleep {
    world: Rc<World>,
    until: Duration,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.world.time() >= self.until { Poll::Ready(()) } else { Poll::Pending }
    }
}
