//! What goes wrong, and when: a plan that is made before the simulation begins, so that a part of it can be left out.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// One bad thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection is cut; both ends learn it.
    Cut,
    /// What one end says is lost from now on, and nobody is told.
    HalfOpen {
        /// What the server says.
        to_client: bool,
    },
    /// Nothing arrives at one end for a while.
    Stick {
        /// What the server says.
        to_client: bool,
        /// For so long.
        millis: u64,
    },
    /// Nobody can call the server, and all connections are stuck, for a while.
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
    FuseServer {
        /// In which one.
        steps: u32,
    },
    /// A client dies while it writes a file.
    FuseClient {
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
pub struct Misfortune {
    /// When it happens.
    pub at: Duration,
    /// What it is.
    pub kind: Kind,
    /// Whom it hits, of those whom it could.
    pub whom: usize,
}

impl fmt::Display for Misfortune {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.3} s {:?} ({})", self.at.as_secs_f64(), self.kind, self.whom)
    }
}

/// So many kinds of bad things there are.
const KINDS: u8 = 16;

/// A plan of what goes wrong in `span`. Unless it is to be rough, each seed is hit by some kinds only, so that rare ones are not drowned by others.
pub(super) fn plan(chance: &mut Rng, span: Duration, rough: bool) -> Vec<Misfortune> {
    let mut kinds: Vec<u8> = match rough {
        true => (0..KINDS).chain([0, 0, 0, 10, 10, 13, 14]).collect(),
        false => (0..KINDS).filter(|_| chance.u8(..3) == 0).collect(),
    };
    if kinds.is_empty() {
        kinds.push(chance.u8(..KINDS));
    }
    let count = if rough { chance.usize(40..80) } else { chance.usize(..30) };
    let mut plan: Vec<Misfortune> = (0..count)
        .filter_map(|_| {
            let kind = kind(*chance.choice(&kinds)?, chance);
            // Most of it early, when everybody is at work.
            let at = span.mul_f64(chance.f64().powi(2));
            Some(Misfortune { at, kind, whom: chance.usize(..100) })
        })
        .collect();
    plan.sort_by_key(|misfortune| misfortune.at);
    plan
}

/// Mostly short: what lasts longer than anybody has patience keeps all others from happening.
fn a_while(chance: &mut Rng) -> u64 {
    match chance.u8(..8) {
        0 => chance.u64(1..90_000),
        _ => chance.u64(1..3000),
    }
}

fn kind(number: u8, chance: &mut Rng) -> Kind {
    match number {
        0 => Kind::Cut,
        1 => Kind::HalfOpen { to_client: chance.bool() },
        2 => Kind::Stick { to_client: chance.bool(), millis: a_while(chance) },
        3 => Kind::Partition { millis: a_while(chance) },
        4 => Kind::KillClient,
        5 => Kind::KillServer,
        6 => Kind::StopServer,
        7 => Kind::PowerClient,
        8 => Kind::PowerServer,
        9 => Kind::FuseServer { steps: chance.u32(..30) },
        10 => Kind::FuseClient { steps: chance.u32(..12), download: chance.bool() },
        11 => Kind::DiskFull { server: chance.bool(), millis: chance.u64(1..20_000) },
        12 => Kind::DiskFails { server: chance.u8(..4) == 0 },
        13 => Kind::DiskSlow { server: chance.u8(..4) > 0, millis: chance.u64(500..10_000) },
        14 => Kind::CutCommit { millis: chance.u64(500..10_000) },
        _ => Kind::ClockJumps { millis: chance.i64(-10_000_000..10_000_000) },
    }
}
