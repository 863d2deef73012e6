//! The processes of `demo`, seen from the one that starts them: all begin at the same moment, none is left behind.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::worker::{READY, Report};
use crate::transport::Transport;

/// One process. Dropped, it is ended and waited for.
struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// Starts `count` processes of this very program, gives all of them the word when all are ready, and returns their
/// reports.
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
        Worker::start(command.args(["demo-worker", "--"]).args(names))
    };
    let mut workers: Vec<Worker> = (0..count).map(start).collect::<io::Result<_>>()?;
    for worker in &mut workers {
        worker.expect_ready()?;
    }
    for worker in &mut workers {
        worker.stdin.write_all(b"go\n")?;
    }
    workers.iter_mut().map(Worker::report).collect()
}

impl Worker {
    fn start(command: &mut Command) -> io::Result<Worker> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a process has no pipes"));
        };
        Ok(Worker { child, stdin, stdout: BufReader::new(stdout) })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn expect_ready(&mut self) -> io::Result<()> {
        if self.line()? == READY { Ok(()) } else { Err(self.ended()) }
    }

    fn report(&mut self) -> io::Result<Report> {
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|_| self.ended())
    }

    /// The process has said on standard error what is wrong; here is how it ended.
    fn ended(&mut self) -> io::Error {
        match self.child.wait() {
            Ok(status) => io::Error::other(format!("a process ended before it had reported ({status})")),
            Err(error) => error,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail for a process that has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Worker {
        Worker::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn a_process_waits_for_the_word_and_reports() {
        let json =
            r#"{"downloaded":1,"waited":2,"milliseconds":3,"bytes":4,"peak_memory":5,"digests":["d"]}"#;
        let mut worker = shell(&format!("echo ready; read word; test $word = go && echo '{json}'"));
        worker.expect_ready().unwrap();
        worker.stdin.write_all(b"go\n").unwrap();
        assert_eq!(worker.report().unwrap().digests, ["d"]);
    }

    #[test]
    fn a_process_that_ends_early_is_an_error_that_says_how() {
        let error = shell("exit 5").expect_ready().unwrap_err();
        assert!(error.to_string().contains("exit status: 5"), "{error}");
    }

    #[test]
    fn no_process_is_left_behind() {
        let mut worker = shell("echo ready; exec sleep 1000");
        worker.expect_ready().unwrap();
        let process = format!("/proc/{}", worker.child.id());
        assert!(Path::new(&process).exists());
        drop(worker);
        assert!(!Path::new(&process).exists());
    }
}
