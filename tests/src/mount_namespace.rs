//! A place of one's own: what is mounted there, nobody else sees, and it is gone with the process, however that ends.
//!
//! It is a mount namespace, with a file system in memory. It has its own opinion of when the machine was started, too, so
//! that one can pretend that it was started again: that is how caches find out whose word they can take.

use std::cell::Cell;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context, Failure, Problem};

/// Says that a process is inside.
const ENTERED: &str = "BLOBFERRY_ENCLOSED";
/// Any directory that is everywhere, and in which nobody keeps programs.
const MEMORY: &str = "/dev/shm";
/// Where the kernel tells which boot this is.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The place.
#[derive(Debug)]
pub struct MountNamespace {
    boot: PathBuf,
    boots: Cell<u64>,
}

impl MountNamespace {
    /// Begins this program anew inside of one, with the same arguments, unless it is inside already. Called before
    /// anything else is done, by programs alone.
    ///
    /// # Errors
    /// [`Failure::Unable`] where that can not be done.
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

    /// Where files can be, in memory.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(MEMORY)
    }

    /// From now on this is another boot of the machine.
    ///
    /// # Errors
    /// What the file system says.
    pub fn reboot(&self) -> Result<(), Problem> {
        self.boots.set(self.boots.get() + 1);
        let boot = format!("b10bfe44-0000-4000-8000-{:012x}\n", self.boots.get());
        fs::write(&self.boot, boot).context("could not pretend that the machine was started again")
    }

    /// Copies a directory to where it can be looked at afterwards.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, dir: &Path) -> Result<PathBuf, Problem> {
        let kept = tempfile::Builder::new().prefix("blobferry-failed-").tempdir();
        let kept = kept.context("could not make a directory")?.keep();
        copy(dir, &kept.join("found")).map(|()| kept)
    }
}

/// Whether this process can enter such a place.
///
/// # Errors
/// [`Failure::Unable`] where it can not.
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
            unable(&format!("can not mount here: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => unable(&format!("can not start unshare: {error}")),
    }
}

fn unshare() -> Command {
    let mut unshare = Command::new("unshare");
    // What others unmount outside is unmounted here, too: nobody's mounts live on because of this.
    unshare.args(["--mount", "--propagation", "slave"]);
    unshare
}

/// Whether a program is there that not every machine has.
pub(crate) fn needs(program: &str) -> Result<(), Failure> {
    match Command::new(program).arg("-V").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Unable(format!("can not start {program}: {error}"))),
    }
}

/// Has a program do something, and waits for it.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), Problem> {
    let doing = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().context(&doing)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Problem(format!("{doing}: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// Copies a directory with all that is in it, extended attributes included.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Problem> {
    run("cp", &["-a", &from.to_string_lossy(), &to.to_string_lossy()])
}
