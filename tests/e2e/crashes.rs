//! Kills a server at many moments of a `put`: afterwards all of its files exist, or none.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use blobferry_protocol::BlobId;
use blobferry_store::{SqliteStore, Store, StoreConfig};
use rustix::process::Signal;

use super::support::{Home, Ran, Serve, blob_files, bytes, end};
use super::throttled_proxy::{DOWN, ThrottledProxy, UP};

/// Sizes in bytes of the files of each `put`: in files of the server, in its database, and empty.
const SIZES: [usize; 8] = [300_000, 0, 1, 1000, 70_000, 150_000, 10, 65_536];

/// When the server is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// This part, in units of 1/[`ROUNDS`], of all that the client sends has reached the server.
    Sent(u64),
    /// All but 1000 bytes have reached the server; then this number of milliseconds passes.
    Later(u64),
    /// All but this number of bytes of the answers have passed: the server has committed, and the
    /// client has no answer.
    Unanswered(u64),
}

/// Number of moments of each kind.
const ROUNDS: u64 = 8;

/// Returns whether a round's files exist. Panics if only a part exists or bytes differ.
fn is_complete(home: &Home, round: &str) -> bool {
    if !home.ls("/").contains(&round.to_owned()) {
        return false;
    }
    home.check_files(round, &SIZES);
    true
}

/// Checks that every blob file belongs to a revision, and that every large blob has a file.
fn check_files_against_rows(dir: &Path) {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files: BTreeSet<BlobId> = blob_files(&dir.join("blobs"))
        .iter()
        .map(|path| {
            BlobId::from_file_name(name(path.parent().unwrap()).parse().unwrap(), &name(path)).unwrap()
        })
        .collect();
    let (config, mut rows, mut after) = (StoreConfig::default(), BTreeSet::new(), None);
    let store = SqliteStore::open(dir, config.clone()).unwrap();
    loop {
        let revisions = store.revisions(after, 1000).unwrap();
        let Some(last) = revisions.last() else { break };
        after = Some((last.tid, last.oid));
        let large = revisions.iter().filter(|row| row.blob.is_some_and(|blob| blob.size > config.inline_max));
        rows.extend(large.map(|row| BlobId { oid: row.oid, tid: row.tid }));
    }
    store.close();
    assert_eq!(files, rows);
}

/// Puts a round's files and kills the server meanwhile; returns whether the put was committed.
fn put_and_kill(moment: Moment, all: [u64; 2]) -> bool {
    let mut home = Home::new();
    let dir = home.path("server");
    home.run(&["put", "-r", &home.files("before", &SIZES)]).ok();
    let proxy = ThrottledProxy::to(&home.server.address);
    let (direction, bytes) = match moment {
        Moment::Sent(part) => (UP, all[UP] * part / ROUNDS),
        Moment::Later(_) => (UP, all[UP] - 1000),
        Moment::Unanswered(bytes) => (DOWN, all[DOWN] - bytes),
    };
    proxy.limit(direction, bytes);
    let put = home.command_to(&proxy.address, &["put", "-r", &home.files("round", &SIZES)]).spawn().unwrap();
    proxy.wait_until_passed(direction, bytes);
    if let Moment::Later(milliseconds) = moment {
        proxy.open();
        // Either result is correct after this time.
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
    home.server.end(Signal::KILL);
    proxy.cut();
    home.server = Serve::start(&dir);
    assert_eq!(std::fs::read_dir(dir.join("blobs/tmp")).unwrap().count(), 0, "no unfinished file is left");
    proxy.set_server(&home.server.address);
    let ran = end(put);
    assert!(ran.code == 0 || ran.code == 5, "{ran:?}");
    // A client that lost its connection during the commit has queried the outcome.
    let committed = is_complete(&home, "round");
    assert_eq!(committed, ran.code == 0, "{ran:?}");
    assert!(is_complete(&home, "before"));
    assert_eq!(home.server.end(Signal::TERM), Some(0));
    check_files_against_rows(&dir);
    committed
}

#[test]
fn put_is_atomic_when_the_server_is_killed() {
    // An undisturbed put shows the number of bytes in each direction.
    let home = Home::new();
    home.run(&["put", "-r", &home.files("before", &SIZES)]).ok();
    let proxy = ThrottledProxy::to(&home.server.address);
    end(home.command_to(&proxy.address, &["put", "-r", &home.files("round", &SIZES)]).spawn().unwrap()).ok();
    proxy.wait_until_all_ended();
    let all = proxy.passed();
    assert!(is_complete(&home, "round"));
    for n in 0..ROUNDS {
        if n > 0 {
            // If the server had not received the request, the restarted server receives all of it.
            put_and_kill(Moment::Sent(n), all);
        }
        put_and_kill(Moment::Later(n * 4), all);
        assert!(put_and_kill(Moment::Unanswered(1 + n), all), "it was committed");
    }
}

#[test]
fn client_killed_during_put_leaves_nothing() {
    let home = Home::new();
    let (proxy, file) =
        (ThrottledProxy::to(&home.server.address), home.file("file", bytes("file", 1_000_000)));
    proxy.limit(UP, 500_000);
    let mut child = home.command_to(&proxy.address, &["put", &file]).spawn().unwrap();
    proxy.wait_until_held();
    child.kill().unwrap();
    child.wait().unwrap();
    proxy.cut();
    assert_eq!(Ran::from(home.command(&["put", &file]).output().unwrap()).ok().lines().count(), 1);
    assert_eq!(home.ls("/"), ["file"]);
}
