//! Power cuts: a file system on which a server and a cache work is shut down at a random moment,
//! mounted again and examined.

use std::fmt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::child::Child;
use crate::examine::{examine_cache, examine_server};
use crate::failure::{Context, Failure, Problem, ensure};
use crate::ledger::{Ledger, Statement};
use crate::mount_namespace::MountNamespace;
use crate::volume::{Cutter, Journal, Kind, Volume};
use crate::workload::Role;

/// The number of cuts after which a new file system is made.
const CUTS_PER_VOLUME: u64 = 8;
/// The most statements that are recorded before a cut. A transaction has two or three.
const MAX_STATEMENTS: u64 = 100;
/// The most microseconds that pass after that.
const MAX_DELAY_MICROS: u64 = 3000;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of cuts.
    pub cycles: u64,
    /// The file system.
    pub kind: Kind,
    /// The seed of the first cut; each cut has the next seed.
    pub from: u64,
}

/// What was done. A problem is a [`Failure`] instead.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The options.
    pub options: Options,
    /// The number of examinations. Sometimes the power is cut again before one.
    pub examined: u64,
    /// The number of committed transactions.
    pub commits: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { options: Options { cycles, kind, .. }, examined, commits, took } = self;
        let rate = *cycles as f64 / took.as_secs_f64();
        write!(
            f,
            "powercut on {kind}: {cycles} cycles in {:.1} s ({rate:.1} a second), examined {examined} times, \
             {commits} commits: 0 lost, 0 torn",
            took.as_secs_f64()
        )
    }
}

/// Cuts the power again and again. `runner` is the program `simulate`.
///
/// # Errors
/// [`Failure`].
pub fn run(namespace: &MountNamespace, runner: &Path, options: Options) -> Result<Report, Failure> {
    let Options { cycles, kind, from } = options;
    kind.possible()?;
    let began = Instant::now();
    let mut report = Report { options, examined: 0, commits: 0, took: Duration::ZERO };
    let mut done = 0;
    while done < cycles {
        let first = from + done;
        let life = CUTS_PER_VOLUME.min(cycles - done);
        let failed = |what, namespace: &MountNamespace, cuts: u64, dir: &Path| Failure::Found {
            what,
            replay: format!("simulate powercut --fs {kind} --from {first} --cycles {cuts}"),
            kept: namespace.keep(dir).unwrap_or_default(),
        };
        let mut life_of = VolumeLife::begin(namespace, runner, kind, first)
            .map_err(|what| failed(what, namespace, 1, namespace.path()))?;
        for n in 0..life {
            life_of
                .cycle(first + n, n + 1 == life)
                .map_err(|what| failed(what, namespace, n + 1, life_of.volume.path()))?;
        }
        life_of.volume.unmount().map_err(|what| failed(what, namespace, life, namespace.path()))?;
        report.examined += life_of.examined;
        report.commits += life_of.ledger.commits() as u64;
        done += life;
    }
    report.took = began.elapsed();
    Ok(report)
}

/// A file system, and what was promised on it.
struct VolumeLife<'a> {
    namespace: &'a MountNamespace,
    runner: &'a Path,
    volume: Volume,
    ledger: Ledger,
    examined: u64,
}

impl<'a> VolumeLife<'a> {
    fn begin(
        namespace: &'a MountNamespace,
        runner: &'a Path,
        kind: Kind,
        seed: u64,
    ) -> Result<VolumeLife<'a>, Problem> {
        let variant = usize::try_from(seed / CUTS_PER_VOLUME).unwrap_or(0);
        let volume = Volume::make(namespace.path(), kind, variant)?;
        Ok(VolumeLife { namespace, runner, volume, ledger: Ledger::default(), examined: 0 })
    }

    fn cycle(&mut self, seed: u64, last: bool) -> Result<(), Problem> {
        let mut rng = Rng::with_seed(seed);
        self.work(seed, &mut rng)?;
        self.volume.unmount()?;
        self.ledger.forget_cached();
        self.namespace.reboot()?;
        self.volume.mount()?;
        // Sometimes the next cut comes before this recovery, or during it.
        if last || rng.u8(..4) > 0 {
            examine_server(self.volume.path(), &mut self.ledger)?;
            examine_cache(self.volume.path(), &self.ledger)?;
            self.examined += 1;
        }
        Ok(())
    }

    /// Lets a process work until the power is cut.
    fn work(&mut self, seed: u64, rng: &mut Rng) -> Result<(), Problem> {
        let journal = if rng.u8(..3) == 0 { Journal::Written } else { Journal::Lost };
        let cutter = Cutter::start(&self.volume, journal)?;
        let child = Child::start(self.runner, Role::Traffic, self.volume.path(), seed)?;
        for _ in 0..rng.u64(..MAX_STATEMENTS) {
            let statement =
                child.next_statement()?.context("the process has ended before its power was cut")?;
            if let Statement::Failed { what } = &statement {
                return Err(Problem(format!("it fails before its power was cut: {what}")));
            }
            ensure!(
                statement != Statement::Done,
                "the process had nothing left to do before its power was cut"
            );
            self.ledger.record(statement)?;
        }
        thread::sleep(Duration::from_micros(rng.u64(..MAX_DELAY_MICROS)));
        child.record_received(&mut self.ledger)?;
        cutter.cut()?;
        child.kill_after_power_cut(&mut self.ledger)
    }
}
