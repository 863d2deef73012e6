//! Disks that fail: each system call of a process fails, one after the other, once or from then on; and writes that take
//! less than they were given.

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

/// System calls that do not fail like this. A file that could not be closed is closed nevertheless; memory is none of a
/// disk's, and neither are the locks of a database, which are waited for where they can not be had.
const NEVER: [&str; 3] = ["close", "fcntl", "mmap"];

/// What becomes of a call, and whether it does from then on.
const FAULTS: [(&str, bool); 4] = [("EIO", false), ("ENOSPC", true), ("ENOSPC", false), ("EIO", true)];

/// The limits of the length of files, in bytes: from the first on, in steps of the second, to the third. The largest
/// blob is between the last ones.
const LIMITS: (u64, usize, u64) = (500, 1_499, 140_000);

/// What was done. Whatever is wrong is a [`Failure`] instead.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How often a call failed, by its name.
    pub failures: BTreeMap<String, usize>,
    /// How often a script was played.
    pub plays: u64,
    /// How often a limit for files refused something.
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

/// Has each system call of a process fail. `runner` is the program `simulate`.
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

/// `at` says what is being tried.
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

/// Short writes. A file system in memory reserves no room beyond such a limit: so this is one on a disk.
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
