//! Real processes, which are killed in the middle.
//!
//! A child is this test binary itself, told by environment variables what to be. It says on stdout what it has done,
//! and is told on stdin what to do: so the order of events is the parent's choice, and no clock's.

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

/// Not a test: what a child does.
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

/// On a line of its own, whatever the test harness has printed before.
pub(crate) fn say(what: &str) {
    println!("\n@{what}");
}

pub(crate) fn told() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Claims one blob, downloads it as far as it is told, and leaves when it is told.
fn claimer(dir: &Path) {
    let cache = open(dir);
    say("claims");
    let cached = match cache.claim(blob(1)).unwrap() {
        Claim::Hit(cached) => cached,
        Claim::Download(mut download) => {
            say("downloads");
            if told() == "half" {
                download.start(0, bytes().len() as u64).unwrap();
                download.write(&bytes()[..150_000]).unwrap();
                say("half");
                told();
            }
            finish(download)
        }
    };
    assert_eq!(read(&cached), bytes());
    say("has it");
    told();
}

/// Takes a bucket's lock again and again, and looks whether it is alone with it.
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
    say("done");
}

/// Children, and what they say.
pub(crate) struct Children {
    pub(crate) children: Vec<(Child, ChildStdin)>,
    pub(crate) said: Receiver<(usize, String)>,
}

impl Children {
    pub(crate) fn start(count: usize, role: &str, dir: &Path) -> Children {
        let (say, said) = channel();
        let children = (0..count).map(|n| start(n, role, dir, say.clone())).collect();
        Children { children, said }
    }

    /// Waits until `count` of them have said `what`, and returns who.
    pub(crate) fn wait_for(&self, count: usize, what: &str) -> Vec<usize> {
        let heard = (0..count).map(|_| self.said.recv().expect("all children are gone"));
        heard.map(|(who, said)| if said == what { who } else { panic!("{who} said {said}") }).collect()
    }

    pub(crate) fn tell(&mut self, who: usize, what: &str) {
        writeln!(self.children[who].1, "{what}").unwrap();
    }

    pub(crate) fn kill(&mut self, who: usize) {
        self.children[who].0.kill().unwrap();
    }

    /// Lets them leave, and sees that they do so well, but for those that were killed.
    pub(crate) fn join(self, killed: &[usize]) {
        for (n, (mut child, stdin)) in self.children.into_iter().enumerate() {
            drop(stdin);
            assert_eq!(child.wait().unwrap().success(), !killed.contains(&n), "{n}");
        }
    }
}

fn start(n: usize, role: &str, dir: &Path, say: Sender<(usize, String)>) -> (Child, ChildStdin) {
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
            if let Some(said) = line.strip_prefix('@') {
                _ = say.send((n, said.to_owned()));
            }
        }
    });
    (child, stdin)
}

/// What is in `tmp/` when nobody has the cache open, but for its lock and the directory of partial downloads.
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
    // The downloader may say so before others claim; who claims before it is told to go on, waits for it.
    let mut claims = 0;
    let mut downloads = Vec::new();
    while claims < 16 || downloads.is_empty() {
        match children.said.recv().unwrap() {
            (_, said) if said == "claims" => claims += 1,
            (who, said) if said == "downloads" => downloads.push(who),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(downloads.len(), 1);
    children.tell(downloads[0], "all");
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
    children.tell(0, "half");
    children.wait_for(1, "half");

    let mut others = Children::start(5, "claimer", dir.path());
    others.wait_for(5, "claims");
    children.kill(0);
    let next = others.wait_for(1, "downloads")[0];
    others.tell(next, "all");
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
