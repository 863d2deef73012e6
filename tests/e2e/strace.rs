//! Runs `strace` to count system calls of the command, or to make them fail.
//!
//! If `strace` is missing or does not work, the test prints that and is skipped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Serve, copy_environment};

/// A `strace` process that is attached to a server.
pub(crate) struct Strace {
    process: Child,
    log: PathBuf,
}

impl Strace {
    /// Attaches a configured `strace` to all threads of a server. Returns `None` if that is
    /// impossible here.
    pub(crate) fn attach(strace: &mut Command, server: &Serve, log: PathBuf) -> Option<Strace> {
        let pid = server.pid().to_string();
        let strace = strace.args(["-f", "-p", &pid, "-o"]).arg(&log).stderr(Stdio::piped()).spawn();
        let Ok(mut process) = strace else {
            println!("skipped: there is no strace here");
            return None;
        };
        let mut line = String::new();
        BufReader::new(process.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.contains("attached") {
            return Some(Strace { process, log });
        }
        println!("skipped: strace does not work here: {line}");
        process.wait().unwrap();
        None
    }

    /// Detaches from the server and returns the log.
    pub(crate) fn end(mut self) -> String {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        self.process.wait().unwrap();
        std::fs::read_to_string(self.log).unwrap()
    }
}

/// Runs a command to its end under a configured `strace`; returns its output and the log.
///
/// Returns `None` if that is impossible here.
pub(crate) fn run(strace: &mut Command, command: &Command, log: &Path) -> Option<(Output, String)> {
    strace.args(["-f", "-o"]).arg(log).arg(command.get_program()).args(command.get_args());
    copy_environment(command, strace);
    let Ok(output) = strace.output() else {
        println!("skipped: there is no strace here");
        return None;
    };
    let calls = std::fs::read_to_string(log).unwrap_or_default();
    if calls.is_empty() {
        println!("skipped: strace does not work here: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some((output, calls))
}

/// Returns how many calls of a log were made to fail.
pub(crate) fn injected(calls: &str) -> usize {
    calls.lines().filter(|line| line.contains("(INJECTED)")).count()
}
