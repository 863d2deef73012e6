//! Helpers that run the command: servers, clients, and temporary directories for their files.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Upper limit on the resident memory of any process, in bytes, for files of any size.
pub(crate) const MAX_MEMORY: u64 = 32 << 20;

/// How long a helper waits for an event before it fails the test.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns the command without the environment settings of the developer's shell.
pub(crate) fn blobferry<A: AsRef<OsStr>>(arguments: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blobferry"));
    command
        .args(arguments)
        .env_remove("BLOBFERRY_SERVER")
        .env_remove("BLOBFERRY_CACHE")
        .env_remove("BLOBFERRY_CACHE_LIMIT")
        .env_remove("RUST_LOG");
    command
}

/// Runs the command to its end; returns its exit code, standard output and standard error.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    let Ran { code, stdout, stderr } = Ran::from(blobferry(arguments).output().unwrap());
    (code, stdout, stderr)
}

/// Exit code and output of a process.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap_or(-1);
        Ran { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    /// Returns standard output. Panics if the process failed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Returns standard error. Panics unless the process exited with `code` and an empty standard
    /// output.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{self:?}");
        assert!(self.stderr.starts_with("blobferry: "), "{self:?}");
        self.stderr
    }

    /// Returns the peak resident memory in bytes, which the process logs if RUST_LOG enables it.
    #[track_caller]
    pub(crate) fn peak_memory(&self) -> u64 {
        let (_, peak) = self.stderr.split_once("peak_memory_bytes=").unwrap();
        peak.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// A process that runs `blobferry serve`. Dropping it kills the process.
pub(crate) struct Serve {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    pub(crate) address: String,
}

impl Serve {
    /// Starts a server and returns when it listens.
    pub(crate) fn start(dir: &Path) -> Serve {
        Serve::start_with(dir, &[])
    }

    /// Like [`Serve::start`], with more arguments.
    pub(crate) fn start_with(dir: &Path, arguments: &[&str]) -> Serve {
        let mut command = blobferry(&[OsStr::new("serve"), "--dir".as_ref(), dir.as_ref()]);
        Serve::spawn(command.args(arguments).args(["--listen", "127.0.0.1:0"]))
    }

    /// Like [`Serve::start`], with a command of the caller's.
    pub(crate) fn spawn(command: &mut Command) -> Serve {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on ").unwrap().trim_end().to_owned();
        Serve { child, _stdout: stdout, address }
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal and waits for the exit. Returns the exit code, or `None` if the signal killed
    /// it.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }

    /// Returns the peak resident memory so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Returns the anonymous resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status("RssAnon:")
    }

    /// Returns a size from `/proc/PID/status`, in bytes.
    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // Both fail if the process has already exited, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server, a cache, and a directory for files. Dropping it removes all three.
pub(crate) struct Home {
    pub(crate) server: Serve,
    dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home::with(|dir| Serve::start(&dir.join("server")))
    }

    /// Like [`Home::new`], with a server that `start` launches for the given directory.
    pub(crate) fn with(start: impl FnOnce(&Path) -> Serve) -> Home {
        let dir = tempfile::tempdir().unwrap();
        Home { server: start(dir.path()), dir }
    }

    /// Returns a path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a user's file and returns its path.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Writes one file of each size into a directory; returns the directory's path.
    pub(crate) fn files(&self, directory: &str, sizes: &[usize]) -> String {
        for (n, size) in sizes.iter().enumerate() {
            self.file(&format!("files/{directory}/{n}"), bytes(&format!("{directory}/{n}"), *size));
        }
        self.path("files").join(directory).to_str().unwrap().to_owned()
    }

    /// Gets the files that [`Home::files`] wrote and compares their bytes.
    #[track_caller]
    pub(crate) fn check_files(&self, directory: &str, sizes: &[usize]) {
        let names: Vec<String> = (0..sizes.len()).map(|n| format!("{directory}/{n}")).collect();
        let arguments: Vec<&str> = ["get"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let got = self.run(&arguments).ok();
        for ((name, size), path) in names.iter().zip(sizes).zip(got.lines()) {
            assert!(std::fs::read(path).unwrap() == bytes(name, *size), "{name}");
        }
    }

    /// Returns the command with this server and this cache.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_to(&self.server.address, arguments)
    }

    /// Returns the command with another server address.
    pub(crate) fn command_to(&self, server: &str, arguments: &[&str]) -> Command {
        let mut command = blobferry(arguments);
        command.env("BLOBFERRY_SERVER", server).env("BLOBFERRY_CACHE", self.path("cache"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs the command with `--json`; returns the objects that it prints. Panics if it fails.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let stdout = Ran::from(self.command(arguments).arg("--json").output().unwrap()).ok();
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Puts files; returns the tid.
    #[track_caller]
    pub(crate) fn put(&self, files: &[&str]) -> String {
        let put = self.json(&[&["put"], files].concat());
        put[0]["tid"].as_str().unwrap().to_owned()
    }

    /// Returns the names in a directory.
    #[track_caller]
    pub(crate) fn ls(&self, dir: &str) -> Vec<String> {
        self.run(&["ls", dir]).ok().lines().map(str::to_owned).collect()
    }

    /// Returns one of the server's counters.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.json(&["status"])[0][name].as_u64().unwrap()
    }
}

/// Gives one command the environment changes of another.
pub(crate) fn copy_environment(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

/// Waits for the exit of a process that was started with [`Home::command`].
pub(crate) fn end(child: Child) -> Ran {
    child.wait_with_output().unwrap().into()
}

/// Returns pseudo-random bytes that depend only on the name.
pub(crate) fn bytes(name: &str, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Returns the digest of a file in the command's notation.
pub(crate) fn digest(path: impl AsRef<Path>) -> String {
    let file = std::fs::File::open(path).unwrap();
    blake3::Hasher::new().update_reader(file).unwrap().finalize().to_hex().to_string()
}

/// Returns every `*.blob` file below a directory. Files that vanish during the scan are skipped.
pub(crate) fn blob_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => todo.push(entry.path()),
                false if entry.path().extension() == Some("blob".as_ref()) => found.push(entry.path()),
                false => {}
            }
        }
    }
    found
}
