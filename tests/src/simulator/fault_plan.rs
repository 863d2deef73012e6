//! What goes wrong, and when: a plan that is made before the simulation begins, so that a part of it can be left out.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// One bad thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A connection is cut; both ends learn it.
    Cut,
    /// What one end says is lost from now on, and nobody is told.
    HalfOpen {
        /// What the server says.
        to_client: bool,
    },
    /// Nothing arrives at one end for a while.
    Stall {
        /// What the server says.
        to_client: bool,
        /// For so long.
        millis: u64,
    },
    /// Nobody can call the server, and all connections are stalled_until, for a while.
    Partition {
        /// For so long.
        millis: u64,
    },
    /// A client's process is killed, and started again.
    KillClient,
    /// The server is killed, and started again.
    KillServer,
    /// The server is stopped as its operator stops it, and started again.
    StopServer,
    /// A client's machine loses its power.
    PowerClient,
    /// The server's machine loses its power.
    PowerServer,
    /// The server dies in the middle of one of its next steps with files; with its machine, or alone.
    KillServerAtStep {
        /// In which one.
        steps: u32,
    },
    /// A client dies while it writes a file.
    KillClientAtWrite {
        /// In which of its next writes.
        steps: u32,
        /// Only what is written of downloads counts.
        download: bool,
    },
    /// A disk is full for a while.
    DiskFull {
        /// The server's.
        server: bool,
        /// For so long.
        millis: u64,
    },
    /// A disk, and all that waits for it, is slow for a while.
    DiskSlow {
        /// The server's.
        server: bool,
        /// For so long.
        millis: u64,
    },
    /// A sync fails.
    DiskFails {
        /// At the server.
        server: bool,
    },
    /// The connection that brings the server the next commit is cut then, and the server's disk is slow for a while: the
    /// client asks what became of the commit while it is being made.
    CutCommit {
        /// For so long.
        millis: u64,
    },
    /// Everybody's time of day jumps.
    ClockJumps {
        /// By so much.
        millis: i64,
    },
}

/// One bad thing at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it happens.
    pub at: Duration,
    /// What it is.
    pub kind: FaultKind,
    /// Whom it hits, of those target it could.
    pub target: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.3} s {:?} ({})", self.at.as_secs_f64(), self.kind, self.target)
    }
}

/// So many kinds of bad things there are.
const KIND_COUNT: u8 = 16;

/// A plan of what goes wrong in `span`. Unless it is to be rough, each seed is hit by some kinds only, so that rare ones are not drowned by others.
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
            // Most of it early, when everybody is at work.
            let at = span.mul_f64(rng.f64().powi(2));
            Some(Fault { at, kind, target: rng.usize(..100) })
        })
        .collect();
    plan.sort_by_key(|fault| fault.at);
    plan
}

/// Mostly short: what lasts longer than anybody has patience keeps all others from happening.
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
