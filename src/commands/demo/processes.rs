//! The child processes of `demo`: they start at the same moment, and none outlives the command.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Command;

use super::worker::{READY, Report};
use crate::process::Process;
use crate::transport::Transport;

/// Starts `count` processes of this program, sends the start signal when all are ready, and returns
/// their reports.
pub(super) fn run(
    count: usize,
    transport: Transport,
    server: &str,
    cache: &Path,
    names: &[String],
) -> io::Result<Vec<Report>> {
    let program = std::env::current_exe()?;
    let start = |_| {
        let mut command = Command::new(&program);
        command.args([OsStr::new("--server"), server.as_ref(), "--cache".as_ref(), cache.as_ref()]);
        command.args(["--transport", transport.name()]).env_remove("BLOBFERRY_CACHE_LIMIT");
        Process::start(command.args(["demo-worker", "--"]).args(names))
    };
    let mut workers: Vec<Process> = (0..count).map(start).collect::<io::Result<_>>()?;
    for worker in &mut workers {
        expect_ready(worker)?;
    }
    for worker in &mut workers {
        worker.send("go")?;
    }
    workers.iter_mut().map(report).collect()
}

fn expect_ready(worker: &mut Process) -> io::Result<()> {
    if worker.receive()? == READY { Ok(()) } else { Err(worker.ended()) }
}

fn report(worker: &mut Process) -> io::Result<Report> {
    let line = worker.receive()?;
    serde_json::from_str(&line).map_err(|_| worker.ended())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_waits_for_the_signal_and_reports() {
        let json =
            r#"{"downloaded":1,"waited":2,"milliseconds":3,"bytes":4,"peak_memory":5,"digests":["d"]}"#;
        let script = format!("echo ready; read word; test $word = go && echo '{json}'");
        let mut worker = Process::start(Command::new("sh").args(["-c", &script])).unwrap();
        expect_ready(&mut worker).unwrap();
        worker.send("go").unwrap();
        assert_eq!(report(&mut worker).unwrap().digests, ["d"]);
    }

    #[test]
    fn process_that_ends_before_ready_is_an_error() {
        let mut worker = Process::start(Command::new("sh").args(["-c", "exit 5"])).unwrap();
        let error = expect_ready(&mut worker).unwrap_err();
        assert!(error.to_string().contains("exit status: 5"), "{error}");
    }
}
