//! A server that is killed at any moment of a `put`: afterwards all of it is there, or nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use blobferry_protocol::BlobId;
use blobferry_store::{SqliteStore, Store, StoreConfig};
use rustix::process::Signal;

use super::support::{Home, Ran, Serve, blob_files, bytes, end};
use super::throttled_proxy::{DOWN, ThrottledProxy, UP};

/// What each `put` is about: kept in files of the server's, in its database, and of no bytes at all.
const SIZES: [usize; 8] = [300_000, 0, 1, 1000, 70_000, 150_000, 10, 65_536];

/// When the server is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So much of all that the client sends has reached the server, in parts of [`ROUNDS`].
    Sent(u64),
    /// Almost all has, and so many milliseconds have gone by.
    Later(u64),
    /// The server has said everything but the last bytes, so it has committed, and the client does not know it.
    Unanswered(u64),
}

/// How many moments there are of each kind.
const ROUNDS: u64 = 8;

/// Looks whether a round's files are there: all, with the right bytes, or none.
fn is_there(home: &Home, round: &str) -> bool {
    if !home.ls("/").contains(&round.to_owned()) {
        return false;
    }
    home.check_files(round, &SIZES);
    true
}

/// Every blob file belongs to a revision, and every large blob has its file.
fn files_and_rows_agree(dir: &Path) {
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

/// Puts a round's files while the server is killed; whether all of them are there afterwards.
fn put_and_kill(moment: Moment, all: [u64; 2]) -> bool {
    let mut home = Home::new();
    let dir = home.path("server");
    home.run(&["put", "-r", &home.files("before", &SIZES)]).ok();
    let proxy = ThrottledProxy::to(&home.server.address);
    let (way, bytes) = match moment {
        Moment::Sent(part) => (UP, all[UP] * part / ROUNDS),
        Moment::Later(_) => (UP, all[UP] - 1000),
        Moment::Unanswered(bytes) => (DOWN, all[DOWN] - bytes),
    };
    proxy.limit(way, bytes);
    let put = home.command_to(&proxy.address, &["put", "-r", &home.files("round", &SIZES)]).spawn().unwrap();
    proxy.wait_until_passed(way, bytes);
    if let Moment::Later(milliseconds) = moment {
        proxy.open();
        // Whatever has happened by then is right.
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
    home.server.end(Signal::KILL);
    proxy.cut();
    home.server = Serve::start(&dir);
    assert_eq!(std::fs::read_dir(dir.join("blobs/tmp")).unwrap().count(), 0, "nothing half is left");
    proxy.lead_to(&home.server.address);
    let ran = end(put);
    assert!(ran.code == 0 || ran.code == 5, "{ran:?}");
    // Who lost the connection in the commit has asked what became of it.
    let committed = is_there(&home, "round");
    assert_eq!(committed, ran.code == 0, "{ran:?}");
    assert!(is_there(&home, "before"));
    assert_eq!(home.server.end(Signal::TERM), Some(0));
    files_and_rows_agree(&dir);
    committed
}

#[test]
fn a_put_whose_server_is_killed_at_any_moment_is_there_as_a_whole_or_not_at_all() {
    // One that is not disturbed shows how much there is to be said.
    let home = Home::new();
    home.run(&["put", "-r", &home.files("before", &SIZES)]).ok();
    let proxy = ThrottledProxy::to(&home.server.address);
    end(home.command_to(&proxy.address, &["put", "-r", &home.files("round", &SIZES)]).spawn().unwrap()).ok();
    proxy.wait_until_all_is_over();
    let all = proxy.passed();
    assert!(is_there(&home, "round"));
    for n in 0..ROUNDS {
        if n > 0 {
            // Where the server had not heard of it yet, the next one gets all of it.
            put_and_kill(Moment::Sent(n), all);
        }
        put_and_kill(Moment::Later(n * 4), all);
        assert!(put_and_kill(Moment::Unanswered(1 + n), all), "it was committed");
    }
}

#[test]
fn a_client_that_is_killed_in_the_middle_of_a_put_leaves_nothing() {
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
