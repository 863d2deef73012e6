//! Failing disks: each system call of a process fails in turn, once or from then on, or writes are
//! short.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Problem, ensure};
use crate::mount_namespace::MountNamespace;
use crate::strace;
pub use crate::syscall_replay::Options;
use crate::syscall_replay::{Point, Replay, Thread, numbers};
use crate::volume::{Kind, Volume};
use crate::workload::Role;

/// System calls that are not made to fail. A file is closed even if `close` fails, and `mmap` does
/// not use the disk. `fcntl` locks the database, and is retried.
const NEVER: [&str; 3] = ["close", "fcntl", "mmap"];

/// The errors that are injected, and whether all later calls fail, too.
const FAULTS: [(&str, bool); 4] = [("EIO", false), ("ENOSPC", true), ("ENOSPC", false), ("EIO", true)];

/// The limits on the length of files in bytes: the first, the step, and the end. The largest blob
/// is between the last two limits.
const LIMITS: (u64, usize, u64) = (500, 1_499, 140_000);

/// What was done. A problem is a [`Failure`] instead.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How often a call failed, by its name.
    pub failures: BTreeMap<String, usize>,
    /// How often a script was run.
    pub plays: u64,
    /// How often a request was refused because of a limit.
    pub limited: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sum, took) = (self.failures.values().sum::<usize>(), self.took.as_secs_f64());
        let (plays, limited) = (self.plays, self.limited);
        write!(f, "ioerrors: {plays} plays in {took:.1} s, {sum} failed calls, {limited} refused for ")?;
        write!(f, "short writes: 0 lost, 0 torn;")?;
        self.failures.iter().try_for_each(|(call, failures)| write!(f, " {call} {failures}"))
    }
}

/// Lets each system call of a process fail. `runner` is the program `simulate`.
///
/// # Errors
/// [`Failure`].
pub fn run(namespace: &MountNamespace, runner: &Path, options: &Options) -> Result<Report, Failure> {
    strace::possible()?;
    Kind::Ext4.possible()?;
    let began = Instant::now();
    let mut report = Report::default();
    for role in Role::SCRIPTS.into_iter().filter(|role| options.role.is_none_or(|only| only == *role)) {
        let mut at = String::new();
        run_role(namespace, runner, role, options, &mut report, &mut at).map_err(|what| Failure::Found {
            what,
            replay: format!("simulate ioerrors --role {}{at}", role.name()),
            kept: namespace.keep(namespace.path()).unwrap_or_default(),
        })?;
    }
    report.took = began.elapsed();
    Ok(report)
}

/// Tries one role. `at` receives the options that select the current point.
fn run_role(
    namespace: &MountNamespace,
    runner: &Path,
    role: Role,
    options: &Options,
    report: &mut Report,
    at: &mut String,
) -> Result<(), Problem> {
    let mut replay = Replay::prepare(namespace, runner, role)?;
    let wanted = |call: &str| options.call.as_ref().is_none_or(|only| only == call);
    let mut turn = 0;
    for thread in Thread::of(role) {
        for (call, count) in replay.calls(*thread)? {
            if NEVER.contains(&call.as_str()) || !wanted(&call) {
                continue;
            }
            let mut failures = 0;
            for number in options.number.map_or_else(|| numbers(count, options.short), |n| vec![n]) {
                *at = format!(" --syscall {call} --number {number}");
                let point = Point { thread: *thread, call: call.clone(), number };
                for (n, (error, for_ever)) in FAULTS.into_iter().enumerate() {
                    if !options.short || n == turn % FAULTS.len() {
                        failures += replay.fail_at(&point, error, for_ever)?;
                        report.plays += 1;
                    }
                }
                turn += 1;
            }
            ensure!(failures > 0 || options.number.is_some(), "nothing failed at this call");
            *report.failures.entry(call).or_insert(0) += failures;
        }
    }
    if matches!(role, Role::Server | Role::Client) && wanted("limit") {
        limits(namespace, &mut replay, options, report, at)?;
    }
    Ok(())
}

/// Tries short writes. This needs a file system on a disk: one in memory does not reserve space
/// beyond a limit.
fn limits(
    namespace: &MountNamespace,
    replay: &mut Replay<'_>,
    options: &Options,
    report: &mut Report,
    at: &mut String,
) -> Result<(), Problem> {
    let volume = Volume::make(namespace.path(), Kind::Ext4, 0)?;
    replay.work_dir = volume.path().join("stage");
    let (first, step, last) = LIMITS;
    let step = if options.short { step * 5 } else { step };
    let all = (first..last).step_by(step);
    let limits: Vec<u64> = options.number.map_or_else(|| all.collect(), |limit| vec![limit.into()]);
    let mut limited = 0;
    for limit in limits {
        *at = format!(" --syscall limit --number {limit}");
        limited += replay.limit_to(limit)?;
        report.plays += 1;
    }
    ensure!(limited > 0 || options.number.is_some(), "nothing was refused because of a limit");
    report.limited += limited;
    Ok(())
}
