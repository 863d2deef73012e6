//! What small things may cost a server: jobs for other threads, wake-ups, syncs, system calls and allocations, counted
//! where no time passes. Each figure that was measured is beside its ceiling, which is a little above it.

use std::path::Path;
use std::process::Command;

use blobferry_protocol::{BlobId, Oid, Reply, Request, RequestId, Tid};
use blobferry_store::StoreConfig;

use crate::still::Still;
use crate::support::{StoreExt, open, role};

const SMALL: usize = 10 << 10;

fn tid(still: &mut Still, commit: RequestId) -> Tid {
    match still.answer(commit) {
        Some(Some(Ok(Reply::Finished { tid }))) => tid,
        other => panic!("{other:?}"),
    }
}

/// A server with a small blob, and with everything in place that is made once.
fn warm() -> (Still, BlobId) {
    let mut still = Still::new(vec![7; SMALL]);
    let mut base = Tid::ZERO;
    for _ in 0..3 {
        let (_, commit) = still.commit_blob(1, base);
        still.settle();
        base = tid(&mut still, commit);
        still.ask(Request::SendBlob { blob: BlobId { oid: Oid(1), tid: base }, from: 0, upto: u64::MAX });
        still.ask(Request::Load { oid: Oid(1) });
        still.settle();
    }
    still.received.clear();
    (still, BlobId { oid: Oid(1), tid: base })
}

#[test]
fn small_reads_change_no_thread() {
    let (mut still, blob) = warm();
    let load = still.ask(Request::SendBlob { blob, from: 0, upto: u64::MAX });
    let done = still.exchange();
    assert_eq!((done.jobs, done.woken), (0, 0));
    assert!(still.answer(load).is_some() && still.received == [7; SMALL]);
    // Measured: 5 allocations of 12,144 bytes: the blob's are taken once.
    assert!(done.session.count_total <= 8, "{:?}", done.session);
    assert!(done.session.bytes_total <= 14 << 10, "{:?}", done.session);

    let load = still.ask(Request::Load { oid: Oid(1) });
    let done = still.exchange();
    assert_eq!((done.jobs, done.woken), (0, 0));
    assert!(matches!(still.answer(load), Some(Some(Ok(Reply::Revision(_))))));
    // Measured: 4 allocations.
    assert!(done.session.count_total <= 6, "{:?}", done.session);
}

#[test]
fn more_reads_than_fit_into_a_turn_are_made_in_the_next_ones_without_waking_anybody() {
    let (mut still, blob) = warm();
    let loads: Vec<RequestId> =
        (0..100).map(|_| still.ask(Request::SendBlob { blob, from: 0, upto: u64::MAX })).collect();
    let mut turns = 0;
    while still.received.len() < 100 * SMALL {
        turns += 1;
        let done = still.exchange();
        assert_eq!((done.jobs, done.woken), (0, 0));
        assert!(turns < 10);
    }
    assert!(turns > 1 && loads.into_iter().all(|load| still.answer(load).is_some()));
}

#[test]
fn a_small_object_is_committed_by_the_committer_alone_with_one_sync_and_one_wake_up() {
    let (mut still, _) = warm();
    let before = still.store.counts();
    let commit = still.commit_record(2, Tid::ZERO);
    let asked = still.exchange();
    assert_eq!((asked.jobs, asked.woken), (0, 0));
    let served = still.serve();
    assert_eq!(served.woken, 1, "for the announcement and the answer");
    assert_eq!(still.exchange().jobs, 0);
    tid(&mut still, commit);
    let after = still.store.counts();
    assert_eq!((after.batches - before.batches, after.syncs - before.syncs), (1, 1));
    // Measured: 22 and 14 allocations.
    assert!(asked.session.count_total <= 28, "{:?}", asked.session);
    assert!(served.store.count_total <= 20, "{:?}", served.store);
}

#[test]
fn what_is_finished_at_the_same_time_shares_a_sync_and_a_wake_up() {
    let (mut still, _) = warm();
    let before = still.store.counts();
    let commits: Vec<RequestId> = (0..16).map(|n| still.commit_record(100 + n, Tid::ZERO)).collect();
    assert_eq!(still.exchange().jobs, 0);
    assert_eq!(still.serve().woken, 1);
    still.exchange();
    for commit in commits {
        tid(&mut still, commit);
    }
    let after = still.store.counts();
    assert_eq!(after.commits - before.commits, 16);
    assert_eq!((after.batches - before.batches, after.syncs - before.syncs), (1, 1));
}

const COMMITS: u64 = 20;

/// Not a test of its own: what the other processes of the test below do.
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
    std::process::abort(); // nothing is tidied up
}

/// How many system calls of these a process makes that commits so often, and how many syncs it counts. `None` where
/// there is no `strace`.
fn traced(dir: &Path, calls: &str, commits: u64) -> Option<(u64, u64)> {
    let log = dir.join("strace");
    let output = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&log)
        .args(["-e", &format!("trace={calls}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "ceilings::child", "--nocapture", "--test-threads=1"])
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
fn the_syncs_that_are_counted_are_those_that_are_made_and_a_commit_writes_few_pages() {
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
