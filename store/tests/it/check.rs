//! The findings of a check, and what a repair does about them.

use std::fs;
use std::path::Path;

use blobferry_protocol::{Oid, Tid};
use blobferry_store::{CheckOptions, CheckReport, FindingKind, OpenError, StoreConfig, check};
use rusqlite::Connection;

use crate::support::{StoreExt, open};

fn config() -> StoreConfig {
    StoreConfig { inline_max: 10, ..StoreConfig::default() }
}

/// Makes a closed store with a blob in a file, a small one, and a deletion. Returns the first tid.
fn closed(dir: &Path) -> Tid {
    let store = open(dir, config());
    let tid = store.put_blob(1, Tid::ZERO, &[1; 5000]);
    store.put_blob(2, Tid::ZERO, b"small");
    let deleted = store.put(3, Tid::ZERO, b"to be deleted");
    store.remove(3, deleted);
    store.close();
    tid
}

fn inspect(dir: &Path) -> CheckReport {
    check(dir, CheckOptions::default(), &mut |_| {}).unwrap()
}

fn repair(dir: &Path) -> CheckReport {
    check(dir, CheckOptions { repair: true }, &mut |_| {}).unwrap()
}

fn kinds(report: &CheckReport) -> Vec<FindingKind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

/// Changes the database from outside.
fn change(dir: &Path, sql: &str) {
    Connection::open(dir.join("store.sqlite")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_closed_store_is_well_and_progress_completes() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path());
    let mut last = None;
    let report = check(dir.path(), CheckOptions::default(), &mut |progress| last = Some(progress)).unwrap();
    assert!(report.is_well() && report.findings.is_empty(), "{report:?}");
    assert_eq!((report.revisions, report.blobs, report.bytes), (4, 2, 5005));
    let last = last.unwrap();
    assert_eq!((last.done, last.total), (5005, 5005));
}

#[test]
fn a_check_reads_the_log_and_leaves_it_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), config());
    store.put_blob(1, Tid::ZERO, &[1; 5000]);
    let copy = tempfile::tempdir().unwrap();
    let names = ["store.sqlite", "store.sqlite-wal", "blobs/.layout"];
    fs::create_dir_all(copy.path().join("blobs/1")).unwrap();
    for name in names {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let blob = fs::read_dir(dir.path().join("blobs/1")).unwrap().next().unwrap().unwrap();
    fs::copy(blob.path(), copy.path().join("blobs/1").join(blob.file_name())).unwrap();
    let contents = || names.map(|name| fs::read(copy.path().join(name)).unwrap());
    let before = contents();
    assert!(!before[1].is_empty(), "the log is not empty");
    let report = inspect(copy.path());
    assert!(report.findings.is_empty(), "{report:?}");
    assert_eq!((report.revisions, report.blobs), (1, 1));
    assert!(contents() == before);
}

#[test]
fn a_damaged_index_loses_no_blob_and_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let tid = closed(dir.path());
    // The index is hidden while a row comes.
    change(
        dir.path(),
        "CREATE TABLE row AS SELECT * FROM revisions WHERE oid = (SELECT min(oid) FROM revisions);
         DELETE FROM revisions WHERE id IN (SELECT id FROM row);
         CREATE TABLE hidden AS SELECT * FROM sqlite_schema WHERE name = 'revisions_by_object';
         PRAGMA writable_schema = ON;
         DELETE FROM sqlite_schema WHERE name = 'revisions_by_object';",
    );
    change(dir.path(), "INSERT INTO revisions SELECT * FROM row;");
    change(
        dir.path(),
        "PRAGMA writable_schema = ON;
         INSERT INTO sqlite_schema SELECT * FROM hidden;
         DROP TABLE hidden;
         DROP TABLE row;",
    );
    let report = inspect(dir.path());
    assert!(!report.is_well());
    assert!(kinds(&report).iter().all(|kind| *kind == FindingKind::Index), "{report:?}");

    let file = dir.path().join(format!("blobs/1/0.{:016x}.blob", tid.0));
    drop(open(dir.path(), config()));
    assert!(file.exists(), "no blob is removed because of an index");
    let report = repair(dir.path());
    assert!(report.is_well() && report.findings.iter().all(|it| it.mended), "{report:?}");
    assert!(inspect(dir.path()).findings.is_empty());
    assert_eq!(open(dir.path(), config()).blob(1, tid), Ok(vec![1; 5000]));
}

#[test]
fn wrong_totals_are_recounted() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path());
    change(
        dir.path(),
        "UPDATE state SET objects = 9, revisions = 9, blobs = 9, blob_bytes = 9, last_oid = 0;",
    );
    change(dir.path(), "UPDATE state SET last_oid = (SELECT min(oid) FROM revisions);");
    assert_eq!(kinds(&inspect(dir.path())), [FindingKind::Totals; 5]);
    assert!(repair(dir.path()).is_well());
    assert!(inspect(dir.path()).findings.is_empty());
    let counts = open(dir.path(), config()).counts();
    assert_eq!((counts.objects, counts.revisions, counts.blobs, counts.blob_bytes), (2, 4, 2, 5005));
    assert!(open(dir.path(), config()).new_oids(1).unwrap().0 > Oid(3));
}

#[test]
fn rows_that_contradict_each_other_stay_listed() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path());
    change(
        dir.path(),
        "DELETE FROM transactions WHERE tid = (SELECT max(tid) FROM transactions);
         INSERT INTO fences SELECT txn FROM transactions LIMIT 1;
         UPDATE revisions SET size = 1 WHERE oid = (SELECT min(oid) FROM revisions);
         UPDATE revisions SET small_blob = x'00' WHERE in_file;",
    );
    let contradictions = [FindingKind::Row; 4];
    assert_eq!(kinds(&inspect(dir.path())), contradictions);
    let report = repair(dir.path());
    assert!(!report.is_well());
    let left: Vec<_> = report.findings.iter().filter(|it| it.is_damage()).map(|it| it.kind).collect();
    assert_eq!(left, contradictions);
    assert_eq!(kinds(&inspect(dir.path())), contradictions);
}

#[test]
fn a_database_of_format_1_is_upgraded_completely() {
    let dir = tempfile::tempdir().unwrap();
    let first = |dir: &Path| {
        let tid = closed(dir);
        change(
            dir,
            "CREATE TABLE small_blobs(id INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
             INSERT INTO small_blobs SELECT id, small_blob FROM revisions WHERE small_blob IS NOT NULL;
             ALTER TABLE revisions DROP COLUMN small_blob;
             ALTER TABLE state DROP COLUMN counted;
             CREATE UNIQUE INDEX revisions_by_transaction ON revisions(tid, oid);
             PRAGMA user_version = 1;",
        );
        tid
    };
    let tid = first(dir.path());
    let refused = check(dir.path(), CheckOptions::default(), &mut |_| {});
    assert!(matches!(refused, Err(OpenError::Older { found: 1, needed: 2, .. })), "{refused:?}");
    let store = open(dir.path(), config());
    assert_eq!(store.blob(1, tid), Ok(vec![1; 5000]));
    let small = store.load(Oid(2)).unwrap().tid;
    assert_eq!(store.blob(2, small), Ok(b"small".to_vec()));
    drop(store);
    assert!(inspect(dir.path()).findings.is_empty());

    let other = tempfile::tempdir().unwrap();
    first(other.path());
    assert!(repair(other.path()).findings.is_empty());
    assert!(inspect(other.path()).findings.is_empty());
}

#[test]
fn a_torn_page_is_damage_and_removes_no_blob() {
    let dir = tempfile::tempdir().unwrap();
    let tid = closed(dir.path());
    let database = dir.path().join("store.sqlite");
    let mut bytes = fs::read(&database).unwrap();
    let pages = bytes.len() / 4096;
    for page in 2..pages {
        bytes[page * 4096..page * 4096 + 100].fill(0xff);
    }
    fs::write(&database, bytes).unwrap();
    for repair in [false, true] {
        let report = check(dir.path(), CheckOptions { repair }, &mut |_| {}).unwrap();
        assert!(!report.is_well());
        assert!(kinds(&report).contains(&FindingKind::Database), "{report:?}");
        assert!(!kinds(&report).contains(&FindingKind::Orphan), "{report:?}");
        assert!(dir.path().join(format!("blobs/1/0.{:016x}.blob", tid.0)).exists());
    }
}
