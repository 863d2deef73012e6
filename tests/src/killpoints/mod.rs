//! Kill points: a process is killed right before each of its system calls in turn, and its files
//! are examined.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Problem, ensure};
use crate::mount_namespace::MountNamespace;
use crate::strace;
pub use crate::syscall_replay::Options;
use crate::syscall_replay::{Point, Replay, Thread, numbers};
use crate::workload::Role;

/// What was done. A problem is a [`Failure`] instead.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How often a process was killed, by the name of the system call.
    pub kills: BTreeMap<String, u64>,
    /// How often a process did not reach the call: the number of calls varies between runs.
    pub missed: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sum, took) = (self.kills.values().sum::<u64>(), self.took.as_secs_f64());
        write!(f, "killpoints: {sum} kills in {took:.1} s, {} not reached: 0 lost, 0 torn;", self.missed)?;
        self.kills.iter().try_for_each(|(call, kills)| write!(f, " {call} {kills}"))
    }
}

/// Kills a process at each of its system calls. `runner` is the program `simulate`.
///
/// # Errors
/// [`Failure`].
pub fn run(namespace: &MountNamespace, runner: &Path, options: &Options) -> Result<Report, Failure> {
    strace::possible()?;
    let began = Instant::now();
    let mut report = Report::default();
    for role in Role::SCRIPTS.into_iter().filter(|role| options.role.is_none_or(|only| only == *role)) {
        run_role(namespace, runner, role, options, &mut report)?;
    }
    report.took = began.elapsed();
    Ok(report)
}

fn run_role(
    namespace: &MountNamespace,
    runner: &Path,
    role: Role,
    options: &Options,
    report: &mut Report,
) -> Result<(), Failure> {
    let failed = |what: Problem, at: &str| Failure::Found {
        what,
        replay: format!("simulate killpoints --role {}{at}", role.name()),
        kept: namespace.keep(namespace.path()).unwrap_or_default(),
    };
    let replay = Replay::prepare(namespace, runner, role).map_err(|wrong| failed(wrong, ""))?;
    for thread in Thread::of(role) {
        let calls = replay.calls(*thread).map_err(|wrong| failed(wrong, ""))?;
        for (call, count) in calls {
            if options.call.as_ref().is_some_and(|only| *only != call) {
                continue;
            }
            let failed = |wrong, number| failed(wrong, &format!(" --syscall {call} --number {number}"));
            let (mut kills, all) =
                (0, options.number.map_or_else(|| numbers(count, options.short), |n| vec![n]));
            for number in &all {
                let point = Point { thread: *thread, call: call.clone(), number: *number };
                kills += u64::from(replay.kill_at(&point).map_err(|wrong| failed(wrong, *number))?);
            }
            report.missed += all.len() as u64 - kills;
            *report.kills.entry(call.clone()).or_insert(0) += kills;
            check_reached(kills, options).map_err(|wrong| failed(wrong, 1))?;
        }
    }
    Ok(())
}

/// Checks that the process was killed at least once: otherwise the test proves nothing.
fn check_reached(kills: u64, options: &Options) -> Result<(), Problem> {
    ensure!(kills > 0 || options.number.is_some(), "nothing was killed at this call");
    Ok(())
}
