//! A child process that exchanges lines with this process through pipes.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A child process. Dropping it kills the process and waits for its end.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a process. It inherits this process's standard error.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn start(command: &mut Command) -> io::Result<Process> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a process has no pipes"));
        };
        Ok(Process { child, stdin, stdout: BufReader::new(stdout) })
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to the process.
    ///
    /// # Errors
    /// The process has closed its standard input.
    pub(crate) fn send(&mut self, line: &str) -> io::Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes())
    }

    /// Reads the next line that the process writes; an empty one if the process has ended.
    ///
    /// # Errors
    /// The pipe's.
    pub(crate) fn receive(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for the end of a process that did not report, and returns its exit status as an error.
    /// The process has printed the cause on standard error.
    pub(crate) fn ended(&mut self) -> io::Error {
        match self.child.wait() {
            Ok(status) => io::Error::other(format!("a process ended before it had reported ({status})")),
            Err(error) => error,
        }
    }

    /// Sends SIGTERM, and waits for the end of the process.
    ///
    /// # Errors
    /// The exit status is not 0.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("a process failed ({status})"))) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if the process has ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn lines_go_both_ways() {
        let mut process = shell("echo ready; read word; echo \"$word!\"");
        assert_eq!(process.receive().unwrap(), "ready");
        process.send("go").unwrap();
        assert_eq!(process.receive().unwrap(), "go!");
    }

    #[test]
    fn early_end_is_an_error_with_the_exit_status() {
        let mut process = shell("exit 5");
        assert_eq!(process.receive().unwrap(), "");
        let error = process.ended();
        assert!(error.to_string().contains("exit status: 5"), "{error}");
    }

    #[test]
    fn dropped_process_is_killed() {
        let mut process = shell("echo ready; exec sleep 1000");
        assert_eq!(process.receive().unwrap(), "ready");
        let path = format!("/proc/{}", process.id());
        assert!(Path::new(&path).exists());
        drop(process);
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn stop_reports_the_exit_status() {
        let script = |code| format!("trap 'exit {code}' TERM; echo ready; read forever");
        for (code, well) in [(0, true), (3, false)] {
            let mut process = shell(&script(code));
            assert_eq!(process.receive().unwrap(), "ready");
            assert_eq!(process.stop().is_ok(), well, "{code}");
        }
    }
}
