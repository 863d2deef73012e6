//! `strace`, which counts system calls of the command, or makes them fail. Where there is none, or it does not work, that is
//! said, and the test is skipped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Serve, copy_environment};

/// One that looks at a server, until it is ended.
pub(crate) struct Strace {
    process: Child,
    log: PathBuf,
}

impl Strace {
    /// Attaches a `strace`, told what to do, to all threads of a server. `None` where that can not be done here.
    pub(crate) fn attach(strace: &mut Command, server: &Serve, log: PathBuf) -> Option<Strace> {
        let pid = server.pid().to_string();
        let strace = strace.args(["-f", "-p", &pid, "-o"]).arg(&log).stderr(Stdio::piped()).spawn();
        let Ok(mut process) = strace else {
            println!("skipped: there is no strace here");
            return None;
        };
        let mut said = String::new();
        BufReader::new(process.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        if said.contains("attached") {
            return Some(Strace { process, log });
        }
        println!("skipped: strace does not work here: {said}");
        process.wait().unwrap();
        None
    }

    /// Lets go of the server, which goes on; what was seen.
    pub(crate) fn end(mut self) -> String {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        self.process.wait().unwrap();
        std::fs::read_to_string(self.log).unwrap()
    }
}

/// Runs a command under a `strace`, told what to do, to its end, with what was seen. `None` where that can not be done here.
pub(crate) fn run(strace: &mut Command, command: &Command, log: &Path) -> Option<(Output, String)> {
    strace.args(["-f", "-o"]).arg(log).arg(command.get_program()).args(command.get_args());
    copy_environment(command, strace);
    let Ok(output) = strace.output() else {
        println!("skipped: there is no strace here");
        return None;
    };
    let seen = std::fs::read_to_string(log).unwrap_or_default();
    if seen.is_empty() {
        println!("skipped: strace does not work here: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some((output, seen))
}

/// How many calls were made to fail, in what was seen.
pub(crate) fn injected(seen: &str) -> usize {
    seen.lines().filter(|line| line.contains("(INJECTED)")).count()
}
