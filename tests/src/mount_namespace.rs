//! A mount namespace with a file system in memory. Other processes do not see its mounts, and it
//! ends with the process.
//!
//! It has a boot id of its own, so that a test can pretend that the machine was restarted. Caches
//! use the boot id to decide which stamps they trust.

use std::cell::Cell;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context, Failure, Problem};

/// The environment variable that marks a process in a namespace.
const ENTERED: &str = "BLOBFERRY_ENCLOSED";
/// A directory that exists on every machine and contains no programs.
const MEMORY: &str = "/dev/shm";
/// The file in which the kernel publishes the boot id.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A mount namespace that this process is in.
#[derive(Debug)]
pub struct MountNamespace {
    boot: PathBuf,
    boots: Cell<u64>,
}

impl MountNamespace {
    /// Starts this program again in a new namespace, with the same arguments, unless it is in one
    /// already. Only a program may call this, before it does anything else.
    ///
    /// # Errors
    /// [`Failure::Unable`] if that is impossible.
    pub fn enter() -> Result<MountNamespace, Failure> {
        if std::env::var_os(ENTERED).is_none() {
            possible()?;
            let program = std::env::current_exe().map_err(|error| Failure::Unable(error.to_string()))?;
            let mut anew = unshare();
            anew.arg(program).args(std::env::args_os().skip(1)).env(ENTERED, "1");
            return Err(Failure::Unable(format!("could not begin anew: {}", anew.exec())));
        }
        let unable = |wrong: Problem| Failure::Unable(wrong.0);
        run("mount", &["-t", "tmpfs", "-o", "mode=700", "blobferry", MEMORY]).map_err(unable)?;
        let namespace = MountNamespace { boot: Path::new(MEMORY).join("boot_id"), boots: Cell::new(0) };
        namespace.reboot().map_err(unable)?;
        run("mount", &["--bind", &namespace.boot.to_string_lossy(), BOOT]).map_err(unable)?;
        Ok(namespace)
    }

    /// Returns the directory of the file system in memory.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(MEMORY)
    }

    /// Changes the boot id, as a restart of the machine would.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn reboot(&self) -> Result<(), Problem> {
        self.boots.set(self.boots.get() + 1);
        let boot = format!("b10bfe44-0000-4000-8000-{:012x}\n", self.boots.get());
        fs::write(&self.boot, boot).context("could not pretend that the machine was started again")
    }

    /// Copies a directory out of the namespace, to be examined later.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn keep(&self, dir: &Path) -> Result<PathBuf, Problem> {
        let kept = tempfile::Builder::new().prefix("blobferry-failed-").tempdir();
        let kept = kept.context("could not make a directory")?.keep();
        copy(dir, &kept.join("found")).map(|()| kept)
    }
}

/// Checks that this process can enter a namespace.
///
/// # Errors
/// [`Failure::Unable`] if it cannot.
pub fn possible() -> Result<(), Failure> {
    let unable = |why: &str| Err(Failure::Unable(why.to_owned()));
    if !rustix::process::geteuid().is_root() {
        return unable("only root can mount file systems");
    }
    let mut probe = unshare();
    probe.args(["mount", "-t", "tmpfs", "blobferry", MEMORY]);
    match probe.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            unable(&format!("cannot mount here: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => unable(&format!("cannot start unshare: {error}")),
    }
}

fn unshare() -> Command {
    let mut unshare = Command::new("unshare");
    // What is unmounted outside is unmounted here, too, so the namespace keeps no foreign mount
    // alive.
    unshare.args(["--mount", "--propagation", "slave"]);
    unshare
}

/// Checks that an optional program is installed.
pub(crate) fn needs(program: &str) -> Result<(), Failure> {
    match Command::new(program).arg("-V").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Unable(format!("cannot start {program}: {error}"))),
    }
}

/// Runs a program, and waits for its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), Problem> {
    let doing = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().context(&doing)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Problem(format!("{doing}: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// Copies a directory and all it contains, with extended attributes.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Problem> {
    run("cp", &["-a", &from.to_string_lossy(), &to.to_string_lossy()])
}
