//! Disks that fail or fill up while a real server works.
//!
//! Every put succeeds, or fails with the operation and the file that caused it. Existing data stays
//! readable. The next start finds everything that was acknowledged and nothing that was refused.
//!
//! The faults are real: small file systems, limits, and system calls that `strace` makes fail. If
//! the machine cannot produce a fault, the test prints that and is skipped.

mod cache;
mod full;
mod injected;
mod limits;
mod read_only;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::check::check;
use super::support::{Home, Serve, blobferry};

/// Sizes in bytes of the files of one put: in files of the server, in its database, and in a file
/// again.
const SIZES: [usize; 3] = [100_000, 700, 70_000];

/// Sizes in bytes of a put large enough to checkpoint the database's log.
const MANY: [usize; 300] = [60_000; 300];

/// Names of directories that were put, by outcome.
struct Ledger {
    sizes: &'static [usize],
    committed: Vec<String>,
    refused: Vec<String>,
    /// Known only after the next start.
    undecided: Vec<String>,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger::of(&SIZES)
    }
}

impl Ledger {
    fn of(sizes: &'static [usize]) -> Ledger {
        Ledger { sizes, committed: Vec::new(), refused: Vec::new(), undecided: Vec::new() }
    }

    /// Puts files; returns the error message if the put is refused.
    fn put(&mut self, home: &Home, server: &Path, name: &str) -> Option<String> {
        let put = home.run(&["put", "-r", &home.files(name, self.sizes)]);
        if put.code == 0 {
            self.committed.push(name.to_owned());
            return None;
        }
        let stderr = put.fails(1);
        let operation = ["could not ", "cannot ", "no room "].iter().any(|words| stderr.contains(words));
        assert!(operation && stderr.contains(server.to_str().unwrap()), "{stderr}");
        match stderr.contains("is known when the server was started again") {
            true => self.undecided.push(name.to_owned()),
            false => self.refused.push(name.to_owned()),
        }
        Some(stderr)
    }

    /// After a restart of the server, sorts the undecided names into those that exist and those
    /// that do not.
    fn decide(&mut self, home: &Home) {
        let names = home.ls("/");
        for name in std::mem::take(&mut self.undecided) {
            match names.contains(&name) {
                true => self.committed.push(name),
                false => self.refused.push(name),
            }
        }
    }

    /// Checks that every committed name can be read and no refused name exists.
    #[track_caller]
    fn verify(&self, home: &Home) {
        let names = home.ls("/");
        for name in &self.committed {
            assert!(names.contains(name), "{name} is missing");
            home.check_files(name, self.sizes);
        }
        assert!(self.refused.iter().all(|name| !names.contains(name)), "{:?} of {names:?}", self.refused);
        assert!(home.counter("revisions") > 0);
    }

    /// Kills the server; checks that the next start finds the right data and accepts writes.
    fn survives_a_restart(mut self, home: &mut Home, server: &Path) {
        home.server.end(Signal::KILL);
        fs::remove_dir_all(home.path("cache")).unwrap();
        home.server = serve_quietly(server);
        self.decide(home);
        self.verify(home);
        assert_eq!(self.put(home, server, "after-all"), None);
        self.verify(home);
        home.server.end(Signal::TERM);
        let stderr = check(server, &[]).ok();
        assert!(stderr.contains("all is well") && stderr.lines().count() == 1, "{stderr}");
    }
}

/// Returns the command that serves a directory without logging.
fn serve_command(server: &Path) -> Command {
    let mut command = blobferry(&["serve", "--listen", "127.0.0.1:0", "--dir"]);
    command.arg(server).env("RUST_LOG", "off");
    command
}

/// Serves a directory without logging.
fn serve_quietly(server: &Path) -> Serve {
    Serve::spawn(&mut serve_command(server))
}

/// A separate mounted file system.
struct Disk {
    at: TempDir,
    /// Directory of the image file, if there is one.
    image: TempDir,
}

impl Disk {
    /// Mounts a `tmpfs` of `size` MiB. Returns `None` if this process may not mount.
    fn in_memory(size: u32) -> Option<Disk> {
        Disk::mount(|at, _| run("mount", &["-t", "tmpfs", "-o", &format!("size={size}m"), "none", at]))
    }

    /// Mounts an image file of `size` MiB: `ext2`, which cannot reserve space, or `ext4`.
    fn in_a_file(kind: &str, size: u32) -> Option<Disk> {
        Disk::mount(|at, image| {
            let image = image.join("image");
            fs::File::create(&image).unwrap().set_len(u64::from(size) << 20).unwrap();
            let image = image.to_str().unwrap();
            run(&format!("mkfs.{kind}"), &["-q", image])
                && run("mount", &["-o", "loop,errors=remount-ro", image, at])
        })
    }

    fn mount(mount: impl FnOnce(&str, &Path) -> bool) -> Option<Disk> {
        let disk = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        if mount(disk.0.path().to_str().unwrap(), disk.1.path()) {
            return Some(Disk { at: disk.0, image: disk.1 });
        }
        println!("skipped: a file system cannot be mounted here");
        None
    }

    /// Mounts the image file again after an unmount.
    fn mount_again(&self) -> bool {
        let image = self.image.path().join("image");
        run("mount", &["-o", "loop", image.to_str().unwrap(), self.at.path().to_str().unwrap()])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A lazy unmount works also if a process has files open there.
        run("umount", &["-l", self.at.path().to_str().unwrap()]);
    }
}

/// Runs a program that may not be installed; returns whether it succeeded.
fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}
