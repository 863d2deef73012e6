//! A child process that uses a store or cache until it is killed, and reports to its parent.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child as Process, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use blobferry_protocol::planted::{Bug, planted};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::failure::{Context, Problem, ensure};
use crate::ledger::{Ledger, Statement};
use crate::workload::Role;

/// The environment variable that names the bug to plant in a process.
pub const PLANTED: &str = "BLOBFERRY_PLANTED";

/// The time after which a silent process counts as hung.
const HANG_TIME: Duration = Duration::from_secs(60);

/// A process that plays a role. Dropping it kills the process.
pub(crate) struct Child {
    process: Process,
    socket: UnixStream,
    statements: Receiver<Statement>,
}

impl Child {
    /// Starts the program `runner` in a role.
    pub(crate) fn start(runner: &Path, role: Role, dir: &Path, seed: u64) -> Result<Child, Problem> {
        // The process itself must ignore SIGXFSZ, to get an error instead when a file may not grow.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(runner);
        command.args(["workload", "--role", role.name(), "--seed", &seed.to_string()]).arg(dir);
        if let Some(bug) = Bug::ALL.iter().find(|bug| planted(**bug)) {
            command.env(PLANTED, bug.name());
        }
        // Sockets use other system calls than files. So those can fail, and statements still
        // arrive.
        let (socket, its) = UnixStream::pair().context("could not make a pair of sockets")?;
        let its = its.try_clone().map(|copy| (OwnedFd::from(its), OwnedFd::from(copy)));
        let (stdin, stdout) = its.context("could not make a pair of sockets")?;
        command.stdin(stdin).stdout(stdout);
        let process = command.spawn().context("could not start a process")?;
        drop(command); // its copies of the sockets
        let from = socket.try_clone().context("could not make a pair of sockets")?;
        let (send, statements) = mpsc::channel();
        let read_statements = move || read_statements(from, |line| _ = send.send(line));
        thread::Builder::new().spawn(read_statements).context("could not start a thread")?;
        Ok(Child { process, socket, statements })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the next statement of the process, or `None` at its end.
    pub(crate) fn next_statement(&self) -> Result<Option<Statement>, Problem> {
        match self.statements.recv_timeout(HANG_TIME) {
            Ok(statement) => Ok(Some(statement)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(Problem(format!("a process has hung for {HANG_TIME:?}"))),
        }
    }

    /// Records all statements until the process pauses. Returns `false` if it ends first.
    pub(crate) fn record_until_it_waits(&self, ledger: &mut Ledger) -> Result<bool, Problem> {
        while let Some(statement) = self.next_statement()? {
            match statement {
                Statement::Waits => return Ok(true),
                statement => ledger.record(statement)?,
            }
        }
        Ok(false)
    }

    /// Lets the process continue. It may be dead already.
    pub(crate) fn resume(&mut self) {
        _ = self.socket.write_all(b"go on\n");
    }

    /// Sets the greatest length of the process's files, in bytes.
    pub(crate) fn limit_files(&self, bytes: Option<u64>) -> Result<(), Problem> {
        let limit = Rlimit { current: bytes, maximum: None };
        let limited = prlimit(Some(Pid::from_child(&self.process)), Resource::Fsize, limit);
        limited.map(drop).context("could not limit the length of files")
    }

    /// Kills the process, and records its remaining statements.
    pub(crate) fn kill(mut self, ledger: &mut Ledger) -> Result<(), Problem> {
        self.process.kill().context("could not kill a process")?;
        self.end(ledger).map(drop)
    }

    /// Records all statements that have arrived.
    pub(crate) fn record_received(&self, ledger: &mut Ledger) -> Result<(), Problem> {
        self.statements.try_iter().try_for_each(|statement| ledger.record(statement))
    }

    /// Kills the process after a power cut. Its intentions are recorded. Answers that arrived after
    /// [`Child::record_received`] are not: the power may have been off.
    pub(crate) fn kill_after_power_cut(mut self, ledger: &mut Ledger) -> Result<(), Problem> {
        self.process.kill().context("could not kill a process")?;
        while let Some(statement) = self.next_statement()? {
            if let Statement::Intends { .. } | Statement::PackBegins { .. } | Statement::NewOids { .. } =
                statement
            {
                ledger.record(statement)?;
            }
        }
        self.process.wait().context("could not wait for a process").map(drop)
    }

    /// Records the remaining statements, and waits for the end of the process.
    pub(crate) fn end(&mut self, ledger: &mut Ledger) -> Result<ExitStatus, Problem> {
        while let Some(statement) = self.next_statement()? {
            ledger.record(statement)?;
        }
        let status = self.process.wait().context("could not wait for a process")?;
        ensure!(status.code().is_none_or(|code| code == 0), "a process has failed by itself: {status}");
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The process may have ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn read_statements(from: UnixStream, received: impl Fn(Statement)) {
    let whole = |line: io::Result<String>| serde_json::from_str(&line.ok()?).ok();
    // The last line of a killed process may be cut off.
    BufReader::new(from).lines().map_while(whole).for_each(received);
}
