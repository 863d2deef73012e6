//! Runs a script again and again, from the same state, with a fault at another system call each
//! time.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use blobferry_platform::sync::Mutex;
use blobferry_protocol::{BlobId, Oid, Tid};

use crate::child::Child;
use crate::examine::{examine_cache, examine_server};
use crate::failure::{Context, Problem, ensure};
use crate::ledger::{Ledger, Statement};
use crate::mount_namespace::{MountNamespace, copy};
use crate::strace::{Strace, Target, count};
use crate::workload::{Role, prepare, server};

/// System calls that do not involve files. No fault is injected there.
const NOT_ABOUT_FILES: [&str; 27] = [
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "clone",
    "clone3",
    "exit",
    "exit_group",
    "futex",
    "geteuid",
    "getpid",
    "getrandom",
    "gettid",
    "madvise",
    "mprotect",
    "munmap",
    "poll",
    "prctl",
    "recvfrom",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "sched_yield",
    "sendto",
    "set_robust_list",
    "sigaltstack",
];

/// Selects the system calls.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// In this role only.
    pub role: Option<Role>,
    /// At this system call only; `limit` selects short writes.
    pub call: Option<String>,
    /// At this one of its calls only, from 1 on, or with this limit only.
    pub number: Option<u32>,
    /// At some of the calls of each name, instead of all.
    pub short: bool,
}

/// The threads whose system calls are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    /// The thread that runs the script.
    Main,
    /// The store's committer.
    Committer,
    /// Every thread, each counted separately.
    Each,
}

impl Thread {
    /// Returns the threads that work in a script.
    pub(crate) const fn of(role: Role) -> &'static [Thread] {
        match role {
            Role::Server => &[Thread::Main, Thread::Committer],
            Role::Client => &[Thread::Each],
            _ => &[Thread::Main],
        }
    }

    fn target(self, child: &Child) -> Result<Target, Problem> {
        let and_others = self == Thread::Each;
        if self != Thread::Committer {
            return Ok(Target { thread: child.pid(), and_others });
        }
        let tasks = format!("/proc/{}/task", child.pid());
        let tasks = fs::read_dir(tasks).context("could not list threads")?.flatten();
        let named = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "store-committer\n")
        };
        let mut found = tasks.filter(named).filter_map(|task| task.file_name().to_str()?.parse().ok());
        let thread = found.next().context("the committer is not there")?;
        Ok(Target { thread, and_others })
    }
}

/// One system call of a script.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) thread: Thread,
    pub(crate) call: String,
    /// The number of the call, from 1 on.
    pub(crate) number: u32,
}

/// Returns the numbers of the calls to try: all, or some of the beginning, the middle and the end.
pub(crate) fn numbers(count: u32, short: bool) -> Vec<u32> {
    if !short {
        return (1..=count).collect();
    }
    let mut some = vec![1, count / 3, count * 2 / 3, count];
    some.retain(|number| *number > 0);
    some.dedup();
    some
}

/// A script, and the state that it starts from.
pub(crate) struct Replay<'a> {
    runner: &'a Path,
    pub(crate) role: Role,
    /// The directory that a run starts from.
    base: PathBuf,
    /// The directory of a run.
    pub(crate) work_dir: PathBuf,
    log: PathBuf,
    ledger: Ledger,
}

impl<'a> Replay<'a> {
    pub(crate) fn prepare(
        namespace: &MountNamespace,
        runner: &'a Path,
        role: Role,
    ) -> Result<Replay<'a>, Problem> {
        let [base, work_dir, log] = ["base", "stage", "log"].map(|name| namespace.path().join(name));
        if base.exists() {
            fs::remove_dir_all(&base).context("could not remove what was played before")?;
        }
        fs::create_dir(&base).context("could not make a directory")?;
        let statements: Mutex<Vec<Statement>> = Mutex::default();
        prepare(role, &base, &|statement| statements.lock().push(statement))?;
        let mut ledger = Ledger::default();
        for statement in std::mem::take(&mut *statements.lock()) {
            ledger.record(statement)?;
        }
        if role == Role::Recovery {
            crash(runner, &base, &mut ledger)?;
        }
        namespace.reboot()?;
        Ok(Replay { runner, role, base, work_dir, log, ledger })
    }

    /// Returns how often a thread of the script makes each system call that involves files.
    pub(crate) fn calls(&self, thread: Thread) -> Result<Vec<(String, u32)>, Problem> {
        let run = Run::begin(self, thread, "all", None)?;
        let (mut child, strace, mut ledger) = (run.child, run.strace, run.ledger);
        let seen = strace.end()?;
        child.resume();
        child.end(&mut ledger)?;
        self.examine(&mut ledger)?;
        Ok(count(&seen).into_iter().filter(|(call, _)| !NOT_ABOUT_FILES.contains(&call.as_str())).collect())
    }

    /// Kills the process right before a system call, and examines what is left. Returns `false` if
    /// the process did not reach the call.
    pub(crate) fn kill_at(&self, point: &Point) -> Result<bool, Problem> {
        let Point { thread, call, number } = point;
        let inject = format!("inject={call}:signal=KILL:when={number}");
        let Run { mut child, waits, strace, mut ledger } = Run::begin(self, *thread, call, Some(&inject))?;
        let killed = if waits {
            child.kill(&mut ledger)?;
            false
        } else {
            let status = child.end(&mut ledger)?;
            ensure!(status.signal() == Some(9), "it was not killed: {status}");
            true
        };
        strace.end()?;
        self.examine(&mut ledger)?;
        Ok(killed)
    }

    /// Lets a system call fail, once or from then on, until the end of the tried part. Examines
    /// what is left, and returns the number of failed calls.
    pub(crate) fn fail_at(&self, point: &Point, error: &str, for_ever: bool) -> Result<usize, Problem> {
        let Point { thread, call, number } = point;
        let more = if for_ever { "+" } else { "" };
        let inject = format!("inject={call}:error={error}:when={number}{more}");
        let Run { mut child, waits, strace, mut ledger } = Run::begin(self, *thread, call, Some(&inject))?;
        ensure!(waits, "it has ended because of an error");
        let seen = strace.end()?;
        child.resume();
        child.end(&mut ledger)?;
        self.examine(&mut ledger)?;
        Ok(seen.lines().filter(|line| line.contains("(INJECTED)")).count())
    }

    /// Limits the length of files in bytes, so that a write which reaches the limit is short.
    /// Examines what is left, and returns the number of refusals.
    pub(crate) fn limit_to(&self, bytes: u64) -> Result<u64, Problem> {
        self.reset()?;
        let mut ledger = self.ledger.clone();
        let mut child = Child::start(self.runner, self.role, &self.work_dir, 0)?;
        ensure!(child.record_until_it_waits(&mut ledger)?, "it has ended before anything happened to it");
        child.limit_files(Some(bytes))?;
        child.resume();
        ensure!(child.record_until_it_waits(&mut ledger)?, "it has ended because of a limit");
        child.limit_files(None)?;
        let refusals = ledger.refusals;
        child.resume();
        child.end(&mut ledger)?;
        self.examine(&mut ledger)?;
        Ok(refusals)
    }

    fn examine(&self, ledger: &mut Ledger) -> Result<(), Problem> {
        match self.role {
            Role::Client => examine_cache(&self.work_dir, ledger),
            _ => examine_server(&self.work_dir, ledger),
        }
    }

    /// Resets the directory of a run, in memory or on a disk.
    pub(crate) fn reset(&self) -> Result<(), Problem> {
        if self.work_dir.exists() {
            fs::remove_dir_all(&self.work_dir).context("could not remove what was played before")?;
        }
        copy(&self.base, &self.work_dir)
    }
}

/// A script that was run to the end of its tried part, or to its own end.
struct Run {
    child: Child,
    /// The script pauses at the end of its tried part.
    waits: bool,
    strace: Strace,
    ledger: Ledger,
}

impl Run {
    fn begin(replay: &Replay<'_>, thread: Thread, calls: &str, inject: Option<&str>) -> Result<Run, Problem> {
        replay.reset()?;
        let mut ledger = replay.ledger.clone();
        let mut child = Child::start(replay.runner, replay.role, &replay.work_dir, 0)?;
        ensure!(child.record_until_it_waits(&mut ledger)?, "it has ended before anything happened to it");
        let strace = Strace::attach(thread.target(&child)?, calls, inject, &replay.log)?;
        child.resume();
        let waits = child.record_until_it_waits(&mut ledger)?;
        Ok(Run { child, waits, strace, ledger })
    }
}

/// Leaves a store as a crash does: with a log that is not in the database yet, and with orphaned
/// files.
fn crash(runner: &Path, base: &Path, ledger: &mut Ledger) -> Result<(), Problem> {
    let mut child = Child::start(runner, Role::Crash, base, 0)?;
    ensure!(child.record_until_it_waits(ledger)?, "it has ended before it was killed");
    child.resume();
    ensure!(child.record_until_it_waits(ledger)?, "it has ended before it was killed");
    child.kill(ledger)?;
    let blobs = server(base).join("blobs");
    let write = |path: PathBuf| fs::write(path, "an orphan").context("could not leave a file");
    write(blobs.join("tmp/.staged-0000000000000077"))?;
    for n in 0..3 {
        let orphan = BlobId { oid: Oid(1 + n), tid: Tid(7777) };
        let bucket = blobs.join(orphan.bucket().to_string());
        fs::create_dir_all(&bucket).context("could not leave a file")?;
        write(bucket.join(orphan.file_name()))?;
    }
    Ok(())
}
