//! A process that this one has started, and talks with in lines, through pipes.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A process. Dropped, it is ended and waited for.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it. Its standard error is this process's own.
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

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to it.
    ///
    /// # Errors
    /// It reads no more.
    pub(crate) fn send(&mut self, line: &str) -> io::Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes())
    }

    /// The next line that it writes; an empty one where it has ended.
    ///
    /// # Errors
    /// The pipe's.
    pub(crate) fn receive(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Why it has not said what it should. It has told on standard error what is wrong; here is how it ended.
    pub(crate) fn ended(&mut self) -> io::Error {
        match self.child.wait() {
            Ok(status) => io::Error::other(format!("a process ended before it had reported ({status})")),
            Err(error) => error,
        }
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// It did not end well.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("a process failed ({status})"))) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for a process that has ended already, which is as well.
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
    fn a_process_is_heard_and_told() {
        let mut process = shell("echo ready; read word; echo \"$word!\"");
        assert_eq!(process.receive().unwrap(), "ready");
        process.send("go").unwrap();
        assert_eq!(process.receive().unwrap(), "go!");
    }

    #[test]
    fn a_process_that_ends_early_is_an_error_that_says_how() {
        let mut process = shell("exit 5");
        assert_eq!(process.receive().unwrap(), "");
        let error = process.ended();
        assert!(error.to_string().contains("exit status: 5"), "{error}");
    }

    #[test]
    fn no_process_is_left_behind() {
        let mut process = shell("echo ready; exec sleep 1000");
        assert_eq!(process.receive().unwrap(), "ready");
        let path = format!("/proc/{}", process.id());
        assert!(Path::new(&path).exists());
        drop(process);
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn a_process_that_is_asked_to_end_may_end_well_or_not() {
        let script = |code| format!("trap 'exit {code}' TERM; echo ready; read forever");
        for (code, well) in [(0, true), (3, false)] {
            let mut process = shell(&script(code));
            assert_eq!(process.receive().unwrap(), "ready");
            assert_eq!(process.stop().is_ok(), well, "{code}");
        }
    }
}
