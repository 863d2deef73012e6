//! System calls of a running server that are made to fail, one after the other, by `strace`.
//!
//! `BLOBFERRY_FAULTS=20` tries the first 20 calls of each kind and thread instead of a few.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::super::support::{Home, blob_files};
use super::{Ledger, quiet};

/// The first so many calls of each thread fail, one in each round.
fn rounds() -> Vec<String> {
    let last = std::env::var("BLOBFERRY_FAULTS").ok().and_then(|last| last.parse().ok()).unwrap_or(3);
    (1..=last).map(|n: u32| n.to_string()).collect()
}

/// A fault that goes on until it is ended.
struct Injection {
    strace: Child,
    log: PathBuf,
}

impl Injection {
    /// Has system calls of a home's server fail. `None` where that can not be done here.
    fn begin(home: &Home, calls: &str, fault: &str) -> Option<Injection> {
        Injection::begin_with(home, calls, fault, &mut Command::new("strace"))
    }

    /// The same, by a `strace` that was told more.
    fn begin_with(home: &Home, calls: &str, fault: &str, strace: &mut Command) -> Option<Injection> {
        let log = home.path("strace");
        let strace = strace
            .args(["-f", "-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{fault}"), "-o"])
            .arg(&log)
            .args(["-p", &home.server.pid().to_string()])
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut strace) = strace else {
            println!("skipped: there is no strace here");
            return None;
        };
        let mut said = String::new();
        BufReader::new(strace.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        if said.contains("attached") {
            return Some(Injection { strace, log });
        }
        println!("skipped: strace does not work here: {said}");
        strace.wait().unwrap();
        None
    }

    /// How often something failed.
    fn end(mut self) -> usize {
        // It lets go of the server, which goes on.
        kill_process(Pid::from_child(&self.strace), Signal::TERM).unwrap();
        self.strace.wait().unwrap();
        let log = std::fs::read_to_string(self.log).unwrap();
        log.lines().filter(|line| line.contains("(INJECTED)")).count()
    }
}

/// What must be true of a server after a fault, whose calls do not fail any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It takes no writes until it is started again.
    RefusesWrites,
    /// It takes writes as before.
    TakesWrites,
    /// One or the other.
    Either,
}

/// Has some calls fail while a server is written to, and looks whether all is as it was said to be. How many did;
/// `None` where that can not be done here.
fn survive(calls: &str, error: &str, when: &str, then: Then) -> Option<usize> {
    let mut home = Home::with(|home| quiet(&home.join("server")));
    let server = home.path("server");
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    let injection = Injection::begin(&home, calls, &format!("error={error}:when={when}"))?;
    let refused: Vec<String> =
        (0..3).filter_map(|n| ledger.put(&home, &server, &format!("round-{n}"))).collect();
    let failed = injection.end();
    ledger.is_right(&home);
    let written = ledger.put(&home, &server, "when-nothing-fails");
    match then {
        Then::RefusesWrites if failed > 0 => {
            assert!(written.is_some(), "{calls} {error} {when}: {refused:?}")
        }
        Then::TakesWrites => assert_eq!(written, None, "{calls} {error} {when}: {refused:?}"),
        _ => {}
    }
    ledger.survives_a_restart(&mut home, &server);
    Some(failed)
}

/// The same in all rounds; at least one call must have failed.
fn survive_all(calls: &str, errors: &[(&str, Then)], more: &[&str]) {
    let whens = rounds().into_iter().chain(more.iter().map(ToString::to_string));
    let mut failed = 0;
    for when in whens {
        for (error, then) in errors {
            let Some(n) = survive(calls, error, &when, *then) else { return };
            failed += n;
        }
    }
    assert!(failed > 0, "{calls}: nothing failed");
}

#[test]
fn a_sync_that_fails_ends_all_writing_until_the_next_start() {
    survive_all("fdatasync,fsync", &[("EIO", Then::RefusesWrites)], &["1+"]);
}

#[test]
fn a_sync_that_finds_no_room_ends_all_writing_as_well() {
    survive_all("fdatasync,fsync", &[("ENOSPC", Then::RefusesWrites)], &[]);
}

#[test]
fn a_write_of_the_database_that_fails_leaves_nothing_of_the_transaction() {
    survive_all("pwrite64", &[("EIO", Then::Either), ("EDQUOT", Then::Either)], &[]);
}

#[test]
fn a_full_disk_and_a_used_up_quota_are_mended_without_a_restart() {
    survive_all("pwrite64", &[("ENOSPC", Then::TakesWrites)], &["1+"]);
    let _ = survive("pwrite64", "EDQUOT", "1+", Then::TakesWrites);
    let _ = survive("pwrite64", "EROFS", "1+", Then::TakesWrites);
}

#[test]
fn a_blob_that_can_not_get_its_name_is_of_no_transaction() {
    let calls = "?rename,?renameat,?renameat2";
    survive_all(calls, &[("EIO", Then::TakesWrites), ("ENOSPC", Then::TakesWrites)], &["1+"]);
}

#[test]
fn room_that_can_not_be_reserved_is_told() {
    survive_all("fallocate", &[("ENOSPC", Then::TakesWrites), ("EDQUOT", Then::TakesWrites)], &["1+"]);
}

#[test]
fn files_and_directories_that_can_not_be_made_are_told() {
    survive_all("openat,?mkdir,?mkdirat,?chmod,fchmod", &[("EIO", Then::Either)], &["1+"]);
}

#[test]
fn what_can_not_be_read_is_told_and_never_taken_for_what_it_is_not() {
    let mut home = Home::with(|home| quiet(&home.join("server")));
    let server = home.path("server");
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    let fault = "error=EIO:when=1+";
    let Some(injection) = Injection::begin(&home, "pread64", fault) else { return };
    let said = home.run(&["get", "before/0"]).fails(1);
    assert!(said.contains("could not read ") && said.contains("blobferry check"), "{said}");
    assert!(said.contains(server.join("store.sqlite").to_str().unwrap()), "{said}");
    assert!(injection.end() > 0);

    // The database can be read, and a blob's file can not.
    let blob = blob_files(&server).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let strace = &mut Command::new("strace");
    let injection = Injection::begin_with(&home, "pread64", fault, strace.arg("-P").arg(&blob)).unwrap();
    let said = home.run(&["get", "before/0"]).fails(6);
    assert!(said.contains("is damaged on the server") && said.contains("Input/output error"), "{said}");
    assert!(said.contains(blob.to_str().unwrap()), "{said}");
    assert!(injection.end() > 0);
    assert_eq!(home.counter("damaged_found"), 1);
    ledger.is_right(&home);
    ledger.survives_a_restart(&mut home, &server);
}
