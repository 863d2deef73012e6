//! The servers and clients of a benchmark: processes of this very program, and what the system tells of them.

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

/// A server. Dropped, it is ended.
pub(super) struct Server {
    process: Option<Process>,
    /// Where it listens.
    pub(super) address: String,
}

impl Server {
    /// Starts one with a directory, and returns when it listens.
    pub(super) fn start(transport: Transport, dir: &Path) -> io::Result<Server> {
        let arguments = [OsStr::new("serve"), "--dir".as_ref(), dir.as_ref(), "--listen".as_ref()];
        let mut process = Process::start(program(transport)?.args(arguments).arg("127.0.0.1:0"))?;
        match process.receive()?.strip_prefix("listening on ") {
            Some(address) => Ok(Server { address: address.to_owned(), process: Some(process) }),
            None => Err(process.ended()),
        }
    }

    /// One that runs already.
    pub(super) fn running(address: &str) -> Server {
        Server { process: None, address: address.to_owned() }
    }

    /// Its process, where it is one that was started here.
    pub(super) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Ends it as its operator would.
    pub(super) fn stop(self) -> io::Result<()> {
        self.process.map_or(Ok(()), Process::stop)
    }
}

/// A client, with one connection and a cache of its own. Dropped, it is ended, and the cache is gone.
pub(super) struct Client {
    process: Process,
    _cache: TempDir,
}

impl Client {
    /// Starts one.
    pub(super) fn start(transport: Transport, server: &Server, cache: TempDir) -> io::Result<Client> {
        let mut command = program(transport)?;
        command.args([OsStr::new("--server"), server.address.as_ref(), "--cache".as_ref()]);
        let process = Process::start(command.arg(cache.path()).arg("bench-worker"))?;
        Ok(Client { process, _cache: cache })
    }

    /// Its process.
    pub(super) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Has it do something, and waits for the answer.
    pub(super) fn ask<A: DeserializeOwned>(&mut self, message: &Message) -> io::Result<A> {
        self.send(message)?;
        self.answer()
    }

    /// Has it do something.
    pub(super) fn send(&mut self, message: &Message) -> io::Result<()> {
        // One that has ended says why when it is asked for the answer.
        let _ = self.process.send(&serde_json::to_string(message)?);
        Ok(())
    }

    /// What came of the last message.
    pub(super) fn answer<A: DeserializeOwned>(&mut self) -> io::Result<A> {
        let line = self.process.receive()?;
        if line.is_empty() {
            return Err(self.process.ended());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// This program, without what the environment says to it.
fn program(transport: Transport) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--transport", transport.name()]);
    for variable in ["BLOBFERRY_SERVER", "BLOBFERRY_CACHE", "BLOBFERRY_CACHE_LIMIT"] {
        command.env_remove(variable);
    }
    Ok(command)
}

/// The time that processors have worked for a process so far, for it and the system together, in seconds.
pub(super) fn processor_seconds(process: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(ticks(&stat)? as f64 / clock_ticks_per_second() as f64)
}

/// The name of the program, in parentheses, may contain anything; user and system time are the 14th and 15th field.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Which part of the time all processors were busy in a moment, with whatever it was; 1 is all of it.
pub(super) fn busy() -> Option<f64> {
    let before = std::fs::read_to_string("/proc/stat").ok()?;
    std::thread::sleep(Duration::from_millis(300));
    let after = std::fs::read_to_string("/proc/stat").ok()?;
    let ((idle_before, all_before), (idle, all)) = (idle_and_all(&before)?, idle_and_all(&after)?);
    let part = idle.saturating_sub(idle_before) as f64 / (all.checked_sub(all_before)?) as f64;
    part.is_finite().then_some(1.0 - part)
}

/// Of all processors together. To wait for a disk is to be idle.
fn idle_and_all(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = line.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
    Some((times.get(3)? + times.get(4)?, times.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_processors_is_found_whatever_the_program_is_called() {
        let stat = "7 (a ) 1 2) S 1 7 7 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 100 1 1";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks(""), None);
        assert!(processor_seconds(std::process::id()).is_some());
    }

    #[test]
    fn processors_are_busy_when_they_neither_idle_nor_wait_for_a_disk() {
        let stat = "cpu  100 1 50 800 40 2 3 4 0 0\ncpu0 1 2 3 4\n";
        assert_eq!(idle_and_all(stat), Some((840, 1000)));
        assert_eq!(idle_and_all("cpu 1 2\n"), None);
        assert!(busy().is_some_and(|busy| (0.0..=1.0).contains(&busy)));
    }
}
