//! Runs `strace`, which injects an error into a system call of another process, or kills the
//! process right before it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Context, Failure, Problem, ensure};
use crate::mount_namespace::needs;

/// Checks that `strace` works here.
pub(crate) fn possible() -> Result<(), Failure> {
    needs("strace")?;
    let output = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Failure::Unable(format!("strace does not work here: {said}")))
        }
        Err(error) => Err(Failure::Unable(format!("strace does not work here: {error}"))),
    }
}

/// The threads to trace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// A thread.
    pub(crate) thread: u32,
    /// Whether to trace the other threads of its process and all later ones, too. `strace` counts
    /// the calls of each thread separately.
    pub(crate) and_others: bool,
}

/// A running `strace`.
pub(crate) struct Strace {
    process: Child,
    log: PathBuf,
}

impl Strace {
    /// Starts to trace some system calls. `inject` says what happens to them.
    pub(crate) fn attach(
        target: Target,
        calls: &str,
        inject: Option<&str>,
        log: &Path,
    ) -> Result<Strace, Problem> {
        let mut strace = Command::new("strace");
        strace.args(["-e", &format!("trace={calls}"), "-p", &target.thread.to_string(), "-o"]).arg(log);
        strace.args(inject.into_iter().flat_map(|inject| ["-e", inject]));
        strace.args(target.and_others.then_some("-f"));
        let process = strace.stderr(Stdio::piped()).spawn().context("could not start strace")?;
        let mut strace = Strace { process, log: log.to_owned() };
        let mut line = String::new();
        let stderr = strace.process.stderr.as_mut().context("strace has no output")?;
        BufReader::new(stderr).read_line(&mut line).context("could not read from strace")?;
        ensure!(line.contains("attached"), "strace could not attach to a process: {line}");
        Ok(strace)
    }

    /// Ends the trace and returns its log. The traced process continues.
    pub(crate) fn end(mut self) -> Result<String, Problem> {
        self.stop()?;
        fs::read_to_string(&self.log).context("could not read what strace has seen")
    }

    fn stop(&mut self) -> Result<(), Problem> {
        // It may have ended with its target. It was not waited for, so the pid is still its own.
        _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        self.process.wait().context("could not wait for strace").map(drop)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            _ = self.stop();
        }
    }
}

/// Counts the calls of each system call by the thread that made most of them, in a log of one or
/// more threads.
pub(crate) fn count(seen: &str) -> BTreeMap<String, u32> {
    let mut counts: BTreeMap<(u32, &str), u32> = BTreeMap::new();
    for line in seen.lines() {
        // In a log of several threads, each line begins with the id of its thread.
        let (thread, rest) = line.split_once(' ').unwrap_or_default();
        let (thread, rest) = thread.parse().map_or((0, line), |thread| (thread, rest.trim_start()));
        let Some((call, _)) = rest.split_once('(') else { continue };
        // Skips the second half of a call, and the end of a process.
        if call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            *counts.entry((thread, call)).or_insert(0) += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in counts {
        let so_far = most.entry(call.to_owned()).or_insert(0);
        *so_far = count.max(*so_far);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once_each() {
        let several = "7 read(3, <unfinished ...>\n8   write(1, \"a (b)\", 5) = 5\n7 <... read resumed>\"x\", 8) = 1\n\
            7 read(3, \"\", 8) = 0\n8 read(3, 0) = 0\n7 +++ killed by SIGKILL +++\n8 --- SIGTERM {si_signo=SIGTERM} ---\n";
        let counts: Vec<_> = count(several).into_iter().collect();
        assert_eq!(counts, [("read".to_owned(), 2), ("write".to_owned(), 1)]);
        assert_eq!(count("close(3) = 0\nclose(4) = 0\n").get("close"), Some(&2));
    }
}
