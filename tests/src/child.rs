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

use crate::ledger::{Ledger, Said};
use crate::workload::Role;
use crate::wrong::{OrWrong, Wrong, ensure};

/// The variable that tells a process which bug is planted in it.
pub const PLANTED: &str = "BLOBFERRY_PLANTED";

/// Nothing takes nearly as long, unless it hangs.
const HANGS: Duration = Duration::from_secs(60);

/// A process that plays a role. Dropped, it is killed.
pub(crate) struct Child {
    process: Process,
    to: UnixStream,
    said: Receiver<Said>,
}

impl Child {
    /// Starts one, of the program `runner`.
    pub(crate) fn start(runner: &Path, role: Role, dir: &Path, seed: u64) -> Result<Child, Wrong> {
        // It has to say to the kernel by itself that it wants to hear of files that may not grow as errors alone.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(runner);
        command.args(["workload", "--role", role.name(), "--seed", &seed.to_string()]).arg(dir);
        if let Some(bug) = Bug::ALL.iter().find(|bug| planted(**bug)) {
            command.env(PLANTED, bug.name());
        }
        // Sockets are spoken to by other system calls than files: those can fail, and what is said is heard.
        let (to, its) = UnixStream::pair().or_wrong("could not make a pair of sockets")?;
        let its = its.try_clone().map(|copy| (OwnedFd::from(its), OwnedFd::from(copy)));
        let (stdin, stdout) = its.or_wrong("could not make a pair of sockets")?;
        command.stdin(stdin).stdout(stdout);
        let process = command.spawn().or_wrong("could not start a process")?;
        drop(command); // its copies of the sockets
        let from = to.try_clone().or_wrong("could not make a pair of sockets")?;
        let (send, said) = mpsc::channel();
        let listen = move || listen(from, |line| _ = send.send(line));
        thread::Builder::new().spawn(listen).or_wrong("could not start a thread")?;
        Ok(Child { process, to, said })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it says next; `None` when it is at its end.
    pub(crate) fn hear(&self) -> Result<Option<Said>, Wrong> {
        match self.said.recv_timeout(HANGS) {
            Ok(said) => Ok(Some(said)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(Wrong(format!("a process has hung for {HANGS:?}"))),
        }
    }

    /// Takes note of all that it says until it waits; `false` where it has come to its end before.
    pub(crate) fn hear_until_it_waits(&self, ledger: &mut Ledger) -> Result<bool, Wrong> {
        while let Some(said) = self.hear()? {
            match said {
                Said::Waits => return Ok(true),
                said => ledger.hear(said)?,
            }
        }
        Ok(false)
    }

    /// Lets it go on. It may be dead already.
    pub(crate) fn go_on(&mut self) {
        _ = self.to.write_all(b"go on\n");
    }

    /// Lets none of its files become longer than so many bytes.
    pub(crate) fn limit_files(&self, bytes: Option<u64>) -> Result<(), Wrong> {
        let limit = Rlimit { current: bytes, maximum: None };
        let limited = prlimit(Some(Pid::from_child(&self.process)), Resource::Fsize, limit);
        limited.map(drop).or_wrong("could not limit the length of files")
    }

    /// Kills it, and takes note of what it had said.
    pub(crate) fn kill(mut self, ledger: &mut Ledger) -> Result<(), Wrong> {
        self.process.kill().or_wrong("could not kill a process")?;
        self.end(ledger).map(drop)
    }

    /// Takes note of all that it has said so far.
    pub(crate) fn hear_what_was_said(&self, ledger: &mut Ledger) -> Result<(), Wrong> {
        self.said.try_iter().try_for_each(|said| ledger.hear(said))
    }

    /// Kills it. What it had intended is known; what it was answered since [`Child::hear_what_was_said`] nobody has heard:
    /// the power was gone, or about to go.
    pub(crate) fn kill_unheard(mut self, ledger: &mut Ledger) -> Result<(), Wrong> {
        self.process.kill().or_wrong("could not kill a process")?;
        while let Some(said) = self.hear()? {
            if let Said::Intends { .. } | Said::Packs { .. } | Said::Given { .. } = said {
                ledger.hear(said)?;
            }
        }
        self.process.wait().or_wrong("could not wait for a process").map(drop)
    }

    /// Takes note of the rest that it says, and waits for its end.
    pub(crate) fn end(&mut self, ledger: &mut Ledger) -> Result<ExitStatus, Wrong> {
        while let Some(said) = self.hear()? {
            ledger.hear(said)?;
        }
        let status = self.process.wait().or_wrong("could not wait for a process")?;
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

fn listen(from: UnixStream, heard: impl Fn(Said)) {
    let whole = |line: io::Result<String>| serde_json::from_str(&line.ok()?).ok();
    // Of a process that was killed, the last line may be cut.
    BufReader::new(from).lines().map_while(whole).for_each(heard);
}
