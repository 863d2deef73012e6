//! System calls of a running server that `strace` makes fail, one after the other.
//!
//! `BLOBFERRY_FAULTS=20` tries the first 20 calls of each kind and thread instead of a few.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Ledger, MANY, serve_command, serve_quietly};
use crate::strace::{Strace, injected};
use crate::support::{Home, Ran, blob_files};

/// Returns the numbers of the calls to fail: in each round the call with that number, in every
/// thread.
fn rounds() -> Vec<String> {
    let last = std::env::var("BLOBFERRY_FAULTS").ok().and_then(|last| last.parse().ok()).unwrap_or(3);
    (1..=last).map(|n: u32| n.to_string()).collect()
}

/// A fault that lasts until [`Injection::end`].
struct Injection(Strace);

impl Injection {
    /// Makes system calls of a home's server fail. Returns `None` if `strace` does not work here.
    fn begin(home: &Home, calls: &str, fault: &str) -> Option<Injection> {
        Injection::begin_with(home, calls, fault, &mut Command::new("strace"))
    }

    /// Like [`Injection::begin`], with more options for `strace`.
    fn begin_with(home: &Home, calls: &str, fault: &str, strace: &mut Command) -> Option<Injection> {
        strace.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{fault}")]);
        Strace::attach(strace, &home.server, home.path("strace")).map(Injection)
    }

    /// Ends the fault; returns the number of failed calls.
    fn end(self) -> usize {
        injected(&self.0.end())
    }
}

/// Required behaviour of a server after the end of a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    /// The server refuses writes until a restart.
    RefusesWrites,
    /// The server accepts writes.
    TakesWrites,
    /// Either is correct.
    Either,
}

/// Makes calls fail during writes and checks the data afterwards.
///
/// Returns the number of failed calls, or `None` if `strace` does not work here.
fn survive(calls: &str, error: &str, when: &str, then: Afterwards) -> Option<usize> {
    let mut home = Home::with(|home| serve_quietly(&home.join("server")));
    let server = home.path("server");
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    let injection = Injection::begin(&home, calls, &format!("error={error}:when={when}"))?;
    let refused: Vec<String> =
        (0..3).filter_map(|n| ledger.put(&home, &server, &format!("round-{n}"))).collect();
    let failed = injection.end();
    ledger.verify(&home);
    let written = ledger.put(&home, &server, "when-nothing-fails");
    match then {
        Afterwards::RefusesWrites if failed > 0 => {
            assert!(written.is_some(), "{calls} {error} {when}: {refused:?}")
        }
        Afterwards::TakesWrites => assert_eq!(written, None, "{calls} {error} {when}: {refused:?}"),
        _ => {}
    }
    ledger.survives_a_restart(&mut home, &server);
    Some(failed)
}

/// Runs [`survive`] in all rounds; at least one call must fail.
fn survive_all(calls: &str, errors: &[(&str, Afterwards)], more: &[&str]) {
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
fn failed_sync_stops_writes_until_restart() {
    survive_all("fdatasync,fsync", &[("EIO", Afterwards::RefusesWrites)], &["1+"]);
}

#[test]
fn sync_without_space_stops_writes_until_restart() {
    survive_all("fdatasync,fsync", &[("ENOSPC", Afterwards::RefusesWrites)], &[]);
}

#[test]
fn failed_database_write_leaves_no_partial_transaction() {
    survive_all("pwrite64", &[("EIO", Afterwards::Either), ("EDQUOT", Afterwards::Either)], &[]);
}

#[test]
fn full_disk_or_quota_recovers_without_restart() {
    survive_all("pwrite64", &[("ENOSPC", Afterwards::TakesWrites)], &["1+"]);
    let _ = survive("pwrite64", "EDQUOT", "1+", Afterwards::TakesWrites);
    let _ = survive("pwrite64", "EROFS", "1+", Afterwards::TakesWrites);
}

#[test]
fn blob_that_cannot_be_renamed_is_not_committed() {
    let calls = "?rename,?renameat,?renameat2";
    survive_all(calls, &[("EIO", Afterwards::TakesWrites), ("ENOSPC", Afterwards::TakesWrites)], &["1+"]);
}

#[test]
fn failed_space_reservation_is_reported() {
    survive_all(
        "fallocate",
        &[("ENOSPC", Afterwards::TakesWrites), ("EDQUOT", Afterwards::TakesWrites)],
        &["1+"],
    );
}

#[test]
fn failed_file_creation_is_reported() {
    survive_all("openat,?mkdir,?mkdirat,?chmod,fchmod", &[("EIO", Afterwards::Either)], &["1+"]);
}

#[test]
fn failed_checkpoint_keeps_the_wal() {
    for (calls, fault, then) in [
        // The first two syncs are those of the new log's header and of the commit.
        // After the answer, the checkpoint syncs the log again (3) and the database (4).
        ("fdatasync,fsync", "error=EIO:when=3", Afterwards::RefusesWrites),
        ("fdatasync,fsync", "error=EIO:when=4", Afterwards::RefusesWrites),
        ("pwrite64", "error=ENOSPC:when=1+", Afterwards::TakesWrites),
        ("pwrite64", "error=EIO:when=1", Afterwards::RefusesWrites),
    ] {
        let mut home = Home::with(|home| serve_quietly(&home.join("server")));
        let server = home.path("server");
        let mut ledger = Ledger::of(&MANY);
        let strace = &mut Command::new("strace");
        if calls == "pwrite64" {
            strace.arg("-P").arg(server.join("store.sqlite"));
        }
        let Some(injection) = Injection::begin_with(&home, calls, fault, strace) else { return };
        assert_eq!(ledger.put(&home, &server, "moved"), None, "{fault}");
        // The next put follows the failed checkpoint.
        let next = ledger.put(&home, &server, "next");
        assert!(injection.end() > 0, "{calls} {fault}");
        assert_eq!(next.is_none(), then == Afterwards::TakesWrites, "{calls} {fault}: {next:?}");
        ledger.verify(&home);
        ledger.survives_a_restart(&mut home, &server);
    }
}

#[test]
fn failed_start_names_cause_and_next_start_recovers() {
    let mut home = Home::with(|home| serve_quietly(&home.join("server")));
    let server = home.path("server");
    let Some(works) = Injection::begin(&home, "fsync", "error=EIO:when=65535") else { return };
    assert_eq!(works.end(), 0);
    let mut ledger = Ledger::default();
    let mut failed = 0;
    for calls in ["fdatasync,fsync", "pwrite64", "ftruncate", "?unlink,?unlinkat"] {
        for when in rounds() {
            let name = format!("{}-{when}", &calls[..4]);
            assert_eq!(ledger.put(&home, &server, &name), None);
            home.server.end(Signal::KILL);
            std::fs::write(server.join("blobs/tmp/.staged-0000000000000000"), "half").unwrap();
            std::fs::create_dir_all(server.join("blobs/0")).unwrap();
            std::fs::write(server.join("blobs/0/9.00000000000000ff.blob"), "never committed").unwrap();
            let serve = serve_command(&server);
            let mut strace = Command::new("strace");
            strace.args(["-D", "-f", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
            strace.args(["-e", &format!("inject={calls}:error=EIO:when={when}")]);
            strace.arg(serve.get_program()).args(serve.get_args()).env("RUST_LOG", "off");
            let Ok(mut started) = strace.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
                return;
            };
            let mut line = String::new();
            BufReader::new(started.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            if line.is_empty() {
                let stderr = Ran::from(started.wait_with_output().unwrap()).fails(1);
                let operation = ["could not ", "cannot "].iter().any(|words| stderr.contains(words));
                assert!(operation && stderr.contains(server.to_str().unwrap()), "{stderr}");
                failed += 1;
            } else {
                started.kill().unwrap();
                started.wait().unwrap();
            }
            home.server = serve_quietly(&server);
            ledger.verify(&home);
        }
    }
    assert!(failed > 0);
    ledger.survives_a_restart(&mut home, &server);
}

#[test]
fn read_errors_are_reported_and_never_taken_for_data() {
    let mut home = Home::with(|home| serve_quietly(&home.join("server")));
    let server = home.path("server");
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    let fault = "error=EIO:when=1+";
    let Some(injection) = Injection::begin(&home, "pread64", fault) else { return };
    let stderr = home.run(&["get", "before/0"]).fails(1);
    assert!(stderr.contains("could not read ") && stderr.contains("blobferry check"), "{stderr}");
    assert!(stderr.contains(server.join("store.sqlite").to_str().unwrap()), "{stderr}");
    assert!(injection.end() > 0);

    // The database is readable, but the blob's file is not: neither `sendfile` nor `pread64` works
    // on it.
    let blob = blob_files(&server).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let strace = &mut Command::new("strace");
    let injection =
        Injection::begin_with(&home, "pread64,sendfile", fault, strace.arg("-P").arg(&blob)).unwrap();
    let stderr = home.run(&["get", "before/0"]).fails(6);
    assert!(stderr.contains("is damaged on the server") && stderr.contains("Input/output error"), "{stderr}");
    assert!(stderr.contains(blob.to_str().unwrap()), "{stderr}");
    assert!(injection.end() > 0);
    assert_eq!(home.counter("damaged_found"), 1);
    ledger.verify(&home);
    ledger.survives_a_restart(&mut home, &server);
}
