//! Disks that fail or fill while a real server works. Whatever happens, everybody who puts something is told that it is
//! there, or why not (what could not be done, and with which file); what is there can be read on; and the next start
//! finds all that was acknowledged, and nothing of what was refused.
//!
//! The faults are real ones, as far as the machine has them to offer: small file systems, limits, and system calls that
//! are made to fail. Where it does not, a test says so and is skipped.

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

/// What is put at once: kept in files of the server's, in its database, and in both anew.
const SIZES: [usize; 3] = [100_000, 700, 70_000];

/// So much that the database's log is moved into the database.
const MANY: [usize; 300] = [60_000; 300];

/// What was put, and what came of it.
struct Ledger {
    sizes: &'static [usize],
    there: Vec<String>,
    not_there: Vec<String>,
    /// Nobody knows before the next start.
    undecided: Vec<String>,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger::of(&SIZES)
    }
}

impl Ledger {
    fn of(sizes: &'static [usize]) -> Ledger {
        Ledger { sizes, there: Vec::new(), not_there: Vec::new(), undecided: Vec::new() }
    }

    /// Puts files; what is said where that is refused.
    fn put(&mut self, home: &Home, server: &Path, name: &str) -> Option<String> {
        let put = home.run(&["put", "-r", &home.files(name, self.sizes)]);
        if put.code == 0 {
            self.there.push(name.to_owned());
            return None;
        }
        let said = put.fails(1);
        let operation = ["could not ", "can not ", "no room "].iter().any(|words| said.contains(words));
        assert!(operation && said.contains(server.to_str().unwrap()), "{said}");
        match said.contains("is known when the server was started again") {
            true => self.undecided.push(name.to_owned()),
            false => self.not_there.push(name.to_owned()),
        }
        Some(said)
    }

    /// The server was started again: what was undecided is there as a whole, or not at all.
    fn decide(&mut self, home: &Home) {
        let names = home.ls("/");
        for name in std::mem::take(&mut self.undecided) {
            match names.contains(&name) {
                true => self.there.push(name),
                false => self.not_there.push(name),
            }
        }
    }

    /// All that is there can be read, and nothing of what is not.
    #[track_caller]
    fn is_right(&self, home: &Home) {
        let names = home.ls("/");
        for name in &self.there {
            assert!(names.contains(name), "{name} is missing");
            home.check_files(name, self.sizes);
        }
        assert!(self.not_there.iter().all(|name| !names.contains(name)), "{:?} of {names:?}", self.not_there);
        assert!(home.counter("revisions") > 0);
    }

    /// The server is killed; its next start finds what it should, and takes writes.
    fn survives_a_restart(mut self, home: &mut Home, server: &Path) {
        home.server.end(Signal::KILL);
        fs::remove_dir_all(home.path("cache")).unwrap();
        home.server = quiet(server);
        self.decide(home);
        self.is_right(home);
        assert_eq!(self.put(home, server, "after-all"), None);
        self.is_right(home);
        home.server.end(Signal::TERM);
        let said = check(server, &[]).ok();
        assert!(said.contains("all is well") && said.lines().count() == 1, "{said}");
    }
}

/// The command that serves a directory, and does not fill the screen with what goes wrong.
fn serving(server: &Path) -> Command {
    let mut command = blobferry(&["serve", "--listen", "127.0.0.1:0", "--dir"]);
    command.arg(server).env("RUST_LOG", "off");
    command
}

fn quiet(server: &Path) -> Serve {
    Serve::spawn(&mut serving(server))
}

/// A file system of its own.
struct Disk {
    at: TempDir,
    /// What it is in, if that is a file.
    image: TempDir,
}

impl Disk {
    /// One in memory, of so many MiB. `None` where this process may not mount any.
    fn in_memory(size: u32) -> Option<Disk> {
        Disk::mount(|at, _| run("mount", &["-t", "tmpfs", "-o", &format!("size={size}m"), "none", at]))
    }

    /// One in a file, of so many MiB: `ext2`, which can not reserve room, or `ext4`.
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
        println!("skipped: a file system can not be mounted here");
        None
    }

    /// Mounts one in a file again that was unmounted.
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
        // Whoever has files open there may keep them.
        run("umount", &["-l", self.at.path().to_str().unwrap()]);
    }
}

/// Whether a program that the system may have or not did what it was told.
fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}
