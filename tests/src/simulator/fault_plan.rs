//! The plan of faults. It is made before the simulation begins, so that parts of it can be left
//! out.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A connection is cut; both ends are notified.
    Cut,
    /// What one end sends is lost from now on, and neither end is notified.
    HalfOpen {
        /// The direction: from the server to the client, or the other way.
        to_client: bool,
    },
    /// No bytes arrive at one end for a time.
    Stall {
        /// The direction: from the server to the client, or the other way.
        to_client: bool,
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// No client can connect, and all connections stall, for a time.
    Partition {
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// A client's process is killed, and started again.
    KillClient,
    /// The server is killed, and started again.
    KillServer,
    /// The server is stopped in an orderly way, and started again.
    StopServer,
    /// A client's machine loses its power.
    PowerClient,
    /// The server's machine loses its power.
    PowerServer,
    /// The server is killed in the middle of a step with files, with its machine or alone.
    KillServerAtStep {
        /// The number of steps before that.
        steps: u32,
    },
    /// A client is killed while it writes a file.
    KillClientAtWrite {
        /// The number of writes before that.
        steps: u32,
        /// Whether only writes of downloads count.
        download: bool,
    },
    /// A disk is full for a time.
    DiskFull {
        /// Whether it is the server's.
        server: bool,
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// A disk, and everything that waits for it, is slow for a time.
    DiskSlow {
        /// Whether it is the server's.
        server: bool,
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// A sync fails.
    DiskFails {
        /// Whether it is the server's.
        server: bool,
    },
    /// The connection that brings the next commit is cut, and the server's disk is slow for a time.
    /// So the client requests the outcome of a commit that is under way.
    CutCommit {
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// The time of day jumps on all machines.
    ClockJumps {
        /// By how much, in milliseconds.
        millis: i64,
    },
}

/// A fault at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it happens, since the start of the simulation.
    pub at: Duration,
    /// What it is.
    pub kind: FaultKind,
    /// Selects a client or connection, modulo their number.
    pub target: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.3} s {:?} ({})", self.at.as_secs_f64(), self.kind, self.target)
    }
}

/// The number of kinds of faults.
const KIND_COUNT: u8 = 16;

/// Makes a plan of the faults within `span`. Unless `rough` is set, each seed has only some kinds,
/// so that frequent kinds do not hide rare ones.
pub(super) fn plan(rng: &mut Rng, span: Duration, rough: bool) -> Vec<Fault> {
    let mut kinds: Vec<u8> = match rough {
        true => (0..KIND_COUNT).chain([0, 0, 0, 10, 10, 13, 14]).collect(),
        false => (0..KIND_COUNT).filter(|_| rng.u8(..3) == 0).collect(),
    };
    if kinds.is_empty() {
        kinds.push(rng.u8(..KIND_COUNT));
    }
    let count = if rough { rng.usize(40..80) } else { rng.usize(..30) };
    let mut plan: Vec<Fault> = (0..count)
        .filter_map(|_| {
            let kind = kind(*rng.choice(&kinds)?, rng);
            // Most faults come early, when all users are at work.
            let at = span.mul_f64(rng.f64().powi(2));
            Some(Fault { at, kind, target: rng.usize(..100) })
        })
        .collect();
    plan.sort_by_key(|fault| fault.at);
    plan
}

/// Returns a duration in milliseconds, mostly short: a long fault would hide all others.
fn short_millis(rng: &mut Rng) -> u64 {
    match rng.u8(..8) {
        0 => rng.u64(1..90_000),
        _ => rng.u64(1..3000),
    }
}

fn kind(number: u8, rng: &mut Rng) -> FaultKind {
    match number {
        0 => FaultKind::Cut,
        1 => FaultKind::HalfOpen { to_client: rng.bool() },
        2 => FaultKind::Stall { to_client: rng.bool(), millis: short_millis(rng) },
        3 => FaultKind::Partition { millis: short_millis(rng) },
        4 => FaultKind::KillClient,
        5 => FaultKind::KillServer,
        6 => FaultKind::StopServer,
        7 => FaultKind::PowerClient,
        8 => FaultKind::PowerServer,
        9 => FaultKind::KillServerAtStep { steps: rng.u32(..30) },
        10 => FaultKind::KillClientAtWrite { steps: rng.u32(..12), download: rng.bool() },
        11 => FaultKind::DiskFull { server: rng.bool(), millis: rng.u64(1..20_000) },
        12 => FaultKind::DiskFails { server: rng.u8(..4) == 0 },
        13 => FaultKind::DiskSlow { server: rng.u8(..4) > 0, millis: rng.u64(500..10_000) },
        14 => FaultKind::CutCommit { millis: rng.u64(500..10_000) },
        _ => FaultKind::ClockJumps { millis: rng.i64(-10_000_000..10_000_000) },
    }
}
