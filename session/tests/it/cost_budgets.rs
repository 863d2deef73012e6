//! Budgets of small requests: jobs for other threads, wake-ups, syncs, system calls and allocations, counted in a server
//! in which no time passes. Each budget is a little above the measured figure beside it.

use std::path::Path;
use std::process::Command;

use blobferry_protocol::{BlobId, Oid, Reply, Request, RequestId, Tid};
use blobferry_store::StoreConfig;

use crate::stepped::Stepped;
use crate::support::{StoreExt, open, role};

const SMALL: usize = 10 << 10;

fn tid(server: &mut Stepped, commit: RequestId) -> Tid {
    match server.answer(commit) {
        Some(Some(Ok(Reply::Finished { tid }))) => tid,
        other => panic!("{other:?}"),
    }
}

/// Returns a server with a small blob, and with everything allocated that is allocated once.
fn warm() -> (Stepped, BlobId) {
    let mut server = Stepped::new(vec![7; SMALL]);
    let mut base = Tid::ZERO;
    for _ in 0..3 {
        let (_, commit) = server.commit_blob(1, base);
        server.settle();
        base = tid(&mut server, commit);
        server.ask(Request::SendBlob { blob: BlobId { oid: Oid(1), tid: base }, from: 0, upto: u64::MAX });
        server.ask(Request::Load { oid: Oid(1) });
        server.settle();
    }
    server.received.clear();
    (server, BlobId { oid: Oid(1), tid: base })
}

#[test]
fn small_reads_run_inline() {
    let (mut server, blob) = warm();
    let load = server.ask(Request::SendBlob { blob, from: 0, upto: u64::MAX });
    let done = server.exchange();
    assert_eq!((done.jobs, done.woken), (0, 0));
    assert!(server.answer(load).is_some() && server.received == [7; SMALL]);
    // Measured: 5 allocations of 12,144 bytes. The blob itself is allocated once.
    assert!(done.session.count_total <= 8, "{:?}", done.session);
    assert!(done.session.bytes_total <= 14 << 10, "{:?}", done.session);

    let load = server.ask(Request::Load { oid: Oid(1) });
    let done = server.exchange();
    assert_eq!((done.jobs, done.woken), (0, 0));
    assert!(matches!(server.answer(load), Some(Some(Ok(Reply::Revision(_))))));
    // Measured: 4 allocations.
    assert!(done.session.count_total <= 6, "{:?}", done.session);
}

#[test]
fn reads_beyond_the_budget_run_in_the_next_turns() {
    let (mut server, blob) = warm();
    let loads: Vec<RequestId> =
        (0..100).map(|_| server.ask(Request::SendBlob { blob, from: 0, upto: u64::MAX })).collect();
    let mut turns = 0;
    while server.received.len() < 100 * SMALL {
        turns += 1;
        let done = server.exchange();
        assert_eq!((done.jobs, done.woken), (0, 0));
        assert!(turns < 10);
    }
    assert!(turns > 1 && loads.into_iter().all(|load| server.answer(load).is_some()));
}

#[test]
fn small_commit_costs_one_sync_and_one_wake_up() {
    let (mut server, _) = warm();
    let before = server.store.counts();
    let commit = server.commit_record(2, Tid::ZERO);
    let asked = server.exchange();
    assert_eq!((asked.jobs, asked.woken), (0, 0));
    let served = server.serve();
    assert_eq!(served.woken, 1, "for the announcement and the answer");
    assert_eq!(server.exchange().jobs, 0);
    tid(&mut server, commit);
    let after = server.store.counts();
    assert_eq!((after.batches - before.batches, after.syncs - before.syncs), (1, 1));
    // Measured: 22 and 14 allocations.
    assert!(asked.session.count_total <= 28, "{:?}", asked.session);
    assert!(served.store.count_total <= 20, "{:?}", served.store);
}

#[test]
fn concurrent_commits_share_a_sync_and_a_wake_up() {
    let (mut server, _) = warm();
    let before = server.store.counts();
    let commits: Vec<RequestId> = (0..16).map(|n| server.commit_record(100 + n, Tid::ZERO)).collect();
    assert_eq!(server.exchange().jobs, 0);
    assert_eq!(server.serve().woken, 1);
    server.exchange();
    for commit in commits {
        tid(&mut server, commit);
    }
    let after = server.store.counts();
    assert_eq!(after.commits - before.commits, 16);
    assert_eq!((after.batches - before.batches, after.syncs - before.syncs), (1, 1));
}

const COMMITS: u64 = 20;

/// Not a test of its own: the child process of the test below.
#[test]
fn child() {
    let Some(dir) = role() else { return };
    let commits = std::env::var("COMMITS").unwrap().parse().unwrap();
    let store = open(&dir, StoreConfig::default());
    let mut base = Tid::ZERO;
    for _ in 0..commits {
        base = store.put_blob(1, base, &[7; SMALL]);
    }
    println!("\nsyncs {}", store.counts().syncs);
    std::process::abort(); // without any clean-up
}

/// Returns how many of these system calls a process makes for `commits` commits, and how many syncs it counts. Returns
/// `None` if `strace` does not work.
fn traced(dir: &Path, calls: &str, commits: u64) -> Option<(u64, u64)> {
    let log = dir.join("strace");
    let output = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&log)
        .args(["-e", &format!("trace={calls}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "cost_budgets::child", "--nocapture", "--test-threads=1"])
        .env("BLOBFERRY_STORE_TEST_DIR", dir.join(format!("{calls}{commits}")))
        .env("COMMITS", commits.to_string())
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let counted = said.lines().find_map(|line| line.strip_prefix("syncs ")?.parse().ok());
    let Some(counted) = counted else {
        println!("skipped: strace does not work here: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    };
    let log = std::fs::read_to_string(log).unwrap();
    let made = log.lines().filter(|line| line.contains('(') && !line.contains("resumed>")).count();
    Some((made as u64, counted))
}

#[test]
fn counted_syncs_are_real_and_a_commit_writes_few_pages() {
    let dir = tempfile::tempdir().unwrap();
    let calls = |calls, commits| traced(dir.path(), calls, commits);
    let Some((at_open, counted)) = calls("fsync,fdatasync", 0) else { return };
    assert_eq!(counted, 0);
    let Some((made, counted)) = calls("fsync,fdatasync", COMMITS) else { return };
    assert_eq!(counted, COMMITS + 1, "one for each, and one for the log that is begun");
    assert_eq!(made - at_open, counted);

    let (Some((at_open, _)), Some((made, _))) = (calls("pwrite64", 0), calls("pwrite64", COMMITS)) else {
        return;
    };
    let each = (made - at_open) / COMMITS;
    // Measured: 22, two for each of 11 pages.
    assert!(each <= 24, "{each} writes a commit");
}
