//! The servers and clients of a benchmark, which are child processes of this program, and their
//! processor time.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::messages::Message;
use crate::process::Process;
use crate::transport::Transport;

/// A server. Dropping it ends its process.
pub(super) struct Server {
    process: Option<Process>,
    /// The listening address.
    pub(super) address: String,
}

impl Server {
    /// Starts a server with a directory, and returns when it listens.
    pub(super) fn start(transport: Transport, dir: &Path) -> io::Result<Server> {
        let arguments = [OsStr::new("serve"), "--dir".as_ref(), dir.as_ref(), "--listen".as_ref()];
        let mut process = Process::start(program(transport)?.args(arguments).arg("127.0.0.1:0"))?;
        match process.receive()?.strip_prefix("listening on ") {
            Some(address) => Ok(Server { address: address.to_owned(), process: Some(process) }),
            None => Err(process.ended()),
        }
    }

    /// Returns a server that runs already.
    pub(super) fn running(address: &str) -> Server {
        Server { process: None, address: address.to_owned() }
    }

    /// Returns the process id, if this command started the server.
    pub(super) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Stops the server with SIGTERM.
    pub(super) fn stop(self) -> io::Result<()> {
        self.process.map_or(Ok(()), Process::stop)
    }
}

/// A client, with one connection and its own cache. Dropping it ends its process and removes the
/// cache.
pub(super) struct Client {
    process: Process,
    _cache: TempDir,
}

impl Client {
    /// Starts a client.
    pub(super) fn start(transport: Transport, server: &Server, cache: TempDir) -> io::Result<Client> {
        let mut command = program(transport)?;
        command.args([OsStr::new("--server"), server.address.as_ref(), "--cache".as_ref()]);
        let process = Process::start(command.arg(cache.path()).arg("bench-worker"))?;
        Ok(Client { process, _cache: cache })
    }

    /// Returns the process id.
    pub(super) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Sends a request, and waits for the answer.
    pub(super) fn ask<A: DeserializeOwned>(&mut self, message: &Message) -> io::Result<A> {
        self.send(message)?;
        self.answer()
    }

    /// Sends a request.
    pub(super) fn send(&mut self, message: &Message) -> io::Result<()> {
        // If the client has ended, `answer` reports why.
        let _ = self.process.send(&serde_json::to_string(message)?);
        Ok(())
    }

    /// Reads the answer to the last request.
    pub(super) fn answer<A: DeserializeOwned>(&mut self) -> io::Result<A> {
        let line = self.process.receive()?;
        if line.is_empty() {
            return Err(self.process.ended());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// Returns a command for this program, without its environment variables.
fn program(transport: Transport) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--transport", transport.name()]);
    for variable in ["BLOBFERRY_SERVER", "BLOBFERRY_CACHE", "BLOBFERRY_CACHE_LIMIT"] {
        command.env_remove(variable);
    }
    Ok(command)
}

/// Returns the user and system time of a process so far, in seconds.
pub(super) fn processor_seconds(process: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(ticks(&stat)? as f64 / clock_ticks_per_second() as f64)
}

/// Parses user and system time: the 14th and 15th field. The program's name, in parentheses, may
/// contain anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The time over which [`busy`] measures.
const BUSY_INTERVAL: Duration = Duration::from_millis(300);

/// Returns the part of the time that the processors are busy, from 0 to 1, measured over
/// [`BUSY_INTERVAL`].
pub(super) fn busy() -> Option<f64> {
    let before = std::fs::read_to_string("/proc/stat").ok()?;
    std::thread::sleep(BUSY_INTERVAL);
    let after = std::fs::read_to_string("/proc/stat").ok()?;
    let ((idle_before, all_before), (idle, all)) = (idle_and_all(&before)?, idle_and_all(&after)?);
    let part = idle.saturating_sub(idle_before) as f64 / (all.checked_sub(all_before)?) as f64;
    part.is_finite().then_some(1.0 - part)
}

/// Parses the idle time and the total time of all processors. Waiting for a disk counts as idle.
fn idle_and_all(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = line.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
    Some((times.get(3)? + times.get(4)?, times.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_parsed_for_any_program_name() {
        let stat = "7 (a ) 1 2) S 1 7 7 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 100 1 1";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks(""), None);
        assert!(processor_seconds(std::process::id()).is_some());
    }

    #[test]
    fn waiting_for_a_disk_counts_as_idle() {
        let stat = "cpu  100 1 50 800 40 2 3 4 0 0\ncpu0 1 2 3 4\n";
        assert_eq!(idle_and_all(stat), Some((840, 1000)));
        assert_eq!(idle_and_all("cpu 1 2\n"), None);
        assert!(busy().is_some_and(|busy| (0.0..=1.0).contains(&busy)));
    }
}
