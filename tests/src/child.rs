//! A process that does something until it is killed, and tells its parent what.

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

/// The variable that tells a process which bug is planted in it.
pub const PLANTED: &str = "BLOBFERRY_PLANTED";

/// Nothing takes nearly as long, unless it hangs.
const HANG_TIME: Duration = Duration::from_secs(60);

/// A process that plays a role. Dropped, it is killed.
pub(crate) struct Child {
    process: Process,
    socket: UnixStream,
    statements: Receiver<Statement>,
}

impl Child {
    /// Starts one, of the program `runner`.
    pub(crate) fn start(runner: &Path, role: Role, dir: &Path, seed: u64) -> Result<Child, Problem> {
        // It has to say to the kernel by itself that it wants to hear of files that may not grow as errors alone.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(runner);
        command.args(["workload", "--role", role.name(), "--seed", &seed.to_string()]).arg(dir);
        if let Some(bug) = Bug::ALL.iter().find(|bug| planted(**bug)) {
            command.env(PLANTED, bug.name());
        }
        // Sockets are spoken to by other system calls than files: those can fail, and what is statement is received.
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

    /// What it says next; `None` when it is at its end.
    pub(crate) fn next_statement(&self) -> Result<Option<Statement>, Problem> {
        match self.statements.recv_timeout(HANG_TIME) {
            Ok(statement) => Ok(Some(statement)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(Problem(format!("a process has hung for {HANG_TIME:?}"))),
        }
    }

    /// Takes note of all that it says until it waits; `false` where it has come to its end before.
    pub(crate) fn record_until_it_waits(&self, ledger: &mut Ledger) -> Result<bool, Problem> {
        while let Some(statement) = self.next_statement()? {
            match statement {
                Statement::Waits => return Ok(true),
                statement => ledger.record(statement)?,
            }
        }
        Ok(false)
    }

    /// Lets it go on. It may be dead already.
    pub(crate) fn resume(&mut self) {
        _ = self.socket.write_all(b"go on\n");
    }

    /// Lets none of its files become longer than so many bytes.
    pub(crate) fn limit_files(&self, bytes: Option<u64>) -> Result<(), Problem> {
        let limit = Rlimit { current: bytes, maximum: None };
        let limited = prlimit(Some(Pid::from_child(&self.process)), Resource::Fsize, limit);
        limited.map(drop).context("could not limit the length of files")
    }

    /// Kills it, and takes note of what it had statement.
    pub(crate) fn kill(mut self, ledger: &mut Ledger) -> Result<(), Problem> {
        self.process.kill().context("could not kill a process")?;
        self.end(ledger).map(drop)
    }

    /// Takes note of all that it has statement so far.
    pub(crate) fn record_received(&self, ledger: &mut Ledger) -> Result<(), Problem> {
        self.statements.try_iter().try_for_each(|statement| ledger.record(statement))
    }

    /// Kills it. What it had intended is known; what it was answered since [`Child::record_received`] nobody has received:
    /// the power was gone, or about to go.
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

    /// Takes note of the rest that it says, and waits for its end.
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
        // It may have come to its end already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn read_statements(from: UnixStream, received: impl Fn(Statement)) {
    let whole = |line: io::Result<String>| serde_json::from_str(&line.ok()?).ok();
    // Of a process that was killed, the last line may be cut.
    BufReader::new(from).lines().map_while(whole).for_each(received);
}
