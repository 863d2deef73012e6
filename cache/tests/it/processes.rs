//! Real processes, which are killed in the middle.
//!
//! A child is this test binary itself, and environment variables select its role. It reports on
//! stdout what it has done, and reads on stdin what to do. So the parent decides the order of
//! events, and no clock does.

use crate::util::{blob, bytes, finish, open, read};
use crate::{follow, takeover};
use blobferry_cache::Claim;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

const ROLE: &str = "BLOBFERRY_CACHE_TEST_ROLE";
const DIR: &str = "BLOBFERRY_CACHE_TEST_DIR";

/// Not a test: the role of a child.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    match role.as_str() {
        "claimer" => claimer(&dir),
        "churner" => churner(&dir),
        "follower" => follow::follower(&dir),
        "heir" => follow::heir(&dir),
        "heir of its own" => follow::heir_of_its_own(&dir),
        "taker" => takeover::taker(&dir),
        "filler" => crate::quota::filler(&dir),
        "holder" => crate::quota::holder(&dir),
        "packer" => crate::segments::packer(&dir),
        "loader" => crate::stress::loader(&dir),
        other => panic!("{other}"),
    }
}

/// Reports on a line of its own, whatever the test harness has printed before.
pub(crate) fn report(what: &str) {
    println!("\n@{what}");
}

pub(crate) fn next_command() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Claims one blob, downloads as much as the parent says, and exits when the parent says so.
fn claimer(dir: &Path) {
    let cache = open(dir);
    report("claims");
    let cached = match cache.claim(blob(1)).unwrap() {
        Claim::Hit(cached) => cached,
        Claim::Download(mut download) => {
            report("downloads");
            if next_command() == "half" {
                download.start(0, bytes().len() as u64).unwrap();
                download.write(&bytes()[..150_000]).unwrap();
                report("half");
                next_command();
            }
            finish(download)
        }
    };
    assert_eq!(read(&cached), bytes());
    report("has it");
    next_command();
}

/// Takes a bucket's lock repeatedly, and asserts that no other process has it.
fn churner(dir: &Path) {
    let cache = open(&dir.join("cache"));
    let holder = dir.join("holder");
    let first = u64::from(std::process::id()) << 32;
    for n in 0..200 {
        let Claim::Download(download) = cache.claim(blob(first + n)).unwrap() else { panic!() };
        OpenOptions::new().write(true).create_new(true).open(&holder).expect("another one holds the lock");
        fs::remove_file(&holder).unwrap();
        drop(download);
    }
    report("done");
}

/// Children, and their reports.
pub(crate) struct Children {
    pub(crate) children: Vec<(Child, ChildStdin)>,
    pub(crate) reports: Receiver<(usize, String)>,
}

impl Children {
    pub(crate) fn start(count: usize, role: &str, dir: &Path) -> Children {
        let (report, reports) = channel();
        let children = (0..count).map(|n| start(n, role, dir, report.clone())).collect();
        Children { children, reports }
    }

    /// Waits until `count` children have reported `what`. Returns their numbers.
    pub(crate) fn wait_for(&self, count: usize, what: &str) -> Vec<usize> {
        let reports = (0..count).map(|_| self.reports.recv().expect("all children are gone"));
        reports
            .map(|(child, text)| if text == what { child } else { panic!("{child} reports {text}") })
            .collect()
    }

    pub(crate) fn command(&mut self, child: usize, what: &str) {
        writeln!(self.children[child].1, "{what}").unwrap();
    }

    pub(crate) fn kill(&mut self, child: usize) {
        self.children[child].0.kill().unwrap();
    }

    /// Waits until the children exit, with success unless they were killed.
    pub(crate) fn join(self, killed: &[usize]) {
        for (n, (mut child, stdin)) in self.children.into_iter().enumerate() {
            drop(stdin);
            assert_eq!(child.wait().unwrap().success(), !killed.contains(&n), "{n}");
        }
    }
}

fn start(n: usize, role: &str, dir: &Path, report: Sender<(usize, String)>) -> (Child, ChildStdin) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::child", "--nocapture"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(reports) = line.strip_prefix('@') {
                _ = report.send((n, reports.to_owned()));
            }
        }
    });
    (child, stdin)
}

/// Returns the names that are left in `tmp/` when no process has the cache open, but for the lock
/// and the directory of partial downloads.
pub(crate) fn left_over(dir: &Path) -> Vec<String> {
    drop(open(dir)); // the next one that opens it cleans up
    let dirs = [dir.join("tmp"), dir.join("tmp/partial")];
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| ![".lock", ".room", "partial"].contains(&name.as_str())).collect()
}

#[test]
fn one_of_sixteen_processes_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let mut children = Children::start(16, "claimer", dir.path());
    // The downloader may report before others claim. A claim that comes before the downloader
    // continues waits for it.
    let mut claims = 0;
    let mut downloads = Vec::new();
    while claims < 16 || downloads.is_empty() {
        match children.reports.recv().unwrap() {
            (_, text) if text == "claims" => claims += 1,
            (child, text) if text == "downloads" => downloads.push(child),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(downloads.len(), 1);
    children.command(downloads[0], "all");
    assert_eq!(children.wait_for(16, "has it").len(), 16);
    children.join(&[]);
    assert!(left_over(dir.path()).is_empty());
}

#[test]
fn another_process_takes_over_from_a_killed_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut children = Children::start(1, "claimer", dir.path());
    children.wait_for(1, "claims");
    assert_eq!(children.wait_for(1, "downloads"), [0]);
    children.command(0, "half");
    children.wait_for(1, "half");

    let mut others = Children::start(5, "claimer", dir.path());
    others.wait_for(5, "claims");
    children.kill(0);
    let next = others.wait_for(1, "downloads")[0];
    others.command(next, "all");
    others.wait_for(5, "has it");
    others.join(&[]);
    children.join(&[0]);
    assert!(left_over(dir.path()).is_empty());
}

#[test]
fn a_lock_never_has_two_holders() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir.path().join("cache"));
    drop(cache.claim(blob(1)).unwrap());
    let lock_file = || fs::metadata(cache.layout().lock_path(3)).unwrap().ino();
    let before = lock_file();
    let children = Children::start(4, "churner", dir.path());
    children.wait_for(4, "done");
    children.join(&[]);
    assert_eq!(lock_file(), before);
}
