//! `blobferry check`: what it finds, repairs and leaves alone. A server never sends a damaged blob.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use super::support::{Home, Ran, Serve, blob_files, blobferry, bytes};

/// Runs `blobferry check` on a server's directory.
pub(crate) fn check(dir: &Path, more: &[&str]) -> Ran {
    blobferry(&["check", "--dir", dir.to_str().unwrap()]).args(more).output().unwrap().into()
}

/// Like [`check`], with `--json`; returns the exit code, the findings and the summary.
fn findings(dir: &Path, more: &[&str]) -> (i32, Vec<Value>, Value) {
    let Ran { code, stdout, stderr } = check(dir, &[&["--json"], more].concat());
    let mut lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.pop().unwrap_or_else(|| panic!("{stderr}"));
    (code, lines, last)
}

/// Returns the directory of a stopped server with a large blob, a small one, and a superseded one.
fn stopped_server() -> (Home, PathBuf) {
    let mut home = Home::new();
    let (large, small) =
        (home.file("large", bytes("large", 300_000)), home.file("small", bytes("small", 500)));
    home.put(&[&large, &small]);
    home.file("large", bytes("newer", 200_000));
    home.put(&[&large]);
    assert_eq!(home.server.end(Signal::TERM), Some(0));
    let dir = home.path("server");
    (home, dir)
}

/// Returns the largest blob file.
fn largest_blob(dir: &Path) -> PathBuf {
    blob_files(dir).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

/// Changes one byte of a read-only file, as a failing disk does.
fn corrupt(path: &Path, at: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// Returns every file below a directory with its content.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => todo.push(entry.path()),
                false => _ = found.insert(entry.path(), fs::read(entry.path()).unwrap()),
            }
        }
    }
    found
}

#[test]
fn check_of_a_sound_store_exits_0_and_changes_nothing() {
    let (_home, dir) = stopped_server();
    let before = snapshot(&dir);
    let output = check(&dir, &[]).ok();
    assert_eq!(output.lines().count(), 1, "{output}");
    assert!(output.contains("3 blobs") && output.contains("all is well"), "{output}");
    let (code, found, last) = findings(&dir, &[]);
    assert_eq!((code, found.len(), &last["damage"], &last["bytes"]), (0, 0, &0.into(), &500_500.into()));
    assert!(snapshot(&dir) == before, "nothing was changed");
}

#[test]
fn check_refuses_a_directory_in_use() {
    let home = Home::new();
    let output = check(&home.path("server"), &[]).fails(1);
    assert!(output.contains("in use by another server"), "{output}");
}

#[test]
fn check_refuses_a_directory_without_a_store() {
    let dir = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--repair"]] {
        let output = check(dir.path(), more).fails(1);
        assert!(output.contains("is not a directory of blobs"), "{output}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn blobs_are_kept_while_the_database_is_missing() {
    let (_home, dir) = stopped_server();
    let database = dir.join("store.sqlite");
    fs::rename(&database, dir.join("backup")).unwrap();
    let blobs = blob_files(&dir).len();
    for arguments in [&["check", "--repair"][..], &["check"], &["serve", "--listen", "127.0.0.1:0"]] {
        let ran: Ran = blobferry(arguments).args(["--dir", dir.to_str().unwrap()]).output().unwrap().into();
        let output = ran.fails(6);
        assert!(output.contains("store.sqlite is missing or empty"), "{output}");
        assert_eq!(blob_files(&dir).len(), blobs, "{arguments:?}");
    }
    fs::rename(dir.join("backup"), &database).unwrap();
    assert!(check(&dir, &[]).ok().contains("all is well"));
}

#[test]
fn check_lists_damaged_and_missing_blobs_and_exits_6() {
    let (_home, dir) = stopped_server();
    let damaged = largest_blob(&dir);
    corrupt(&damaged, 123_456);
    let missing = blob_files(&dir).into_iter().find(|path| *path != damaged).unwrap();
    fs::remove_file(&missing).unwrap();
    for more in [&[][..], &["--repair"]] {
        let (code, found, last) = findings(&dir, more);
        assert_eq!((code, found.len(), &last["damage"]), (6, 2, &2.into()), "{found:?}");
        for (kind, path) in [("damaged", &damaged), ("missing", &missing)] {
            let it = found.iter().find(|it| it["kind"] == kind).unwrap();
            assert_eq!(it["path"], path.to_str().unwrap());
            assert!(it["oid"].is_string() && it["tid"].is_string() && it["damage"] == true, "{it}");
            assert!(it["advice"].as_str().unwrap().contains("backup"), "{it}");
        }
    }
    assert!(damaged.exists(), "a damaged file is kept, since parts of it may be recoverable");
    let ran = check(&dir, &[]);
    assert!(ran.stderr.contains("is damaged: 2 of"), "{ran:?}");
}

#[test]
fn check_finds_a_damaged_inline_blob() {
    let (_home, dir) = stopped_server();
    let database = dir.join("store.sqlite");
    let content = fs::read(&database).unwrap();
    let small = bytes("small", 500);
    let at = content.windows(64).position(|window| window == &small[..64]).unwrap();
    corrupt(&database, at as u64);
    let (code, found, _) = findings(&dir, &[]);
    assert_eq!((code, found.len()), (6, 1), "{found:?}");
    assert_eq!(
        (&found[0]["kind"], &found[0]["path"]),
        (&"damaged".into(), &database.to_str().unwrap().into())
    );
}

#[test]
fn only_repair_removes_orphans_and_leftovers() {
    let (mut home, dir) = stopped_server();
    let orphan = largest_blob(&dir).with_file_name("77.00000000000000ff.blob");
    fs::write(&orphan, "never committed").unwrap();
    let leftover = dir.join("blobs/tmp/blob-abc");
    fs::write(&leftover, "half").unwrap();
    let (code, found, _) = findings(&dir, &[]);
    assert_eq!((code, found.len()), (6, 2), "{found:?}");
    assert!(orphan.exists() && leftover.exists());
    let kinds =
        |found: &[Value]| found.iter().map(|it| it["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(kinds(&found), ["orphan", "leftover"]);

    let (code, found, last) = findings(&dir, &["--repair"]);
    assert_eq!((code, &last["damage"]), (0, &0.into()), "{found:?}");
    assert!(found.iter().all(|it| it["advice"] == "mended"), "{found:?}");
    assert!(!orphan.exists() && !leftover.exists());
    assert_eq!(findings(&dir, &[]).1.len(), 0);
    home.server = Serve::start(&dir);
    assert_eq!(fs::read(home.run(&["get", "large"]).ok().trim_end()).unwrap(), bytes("newer", 200_000));
}

#[test]
fn leftovers_of_an_uncommitted_transaction_are_harmless() {
    let (_home, dir) = stopped_server();
    fs::write(dir.join("blobs/tmp/.staged-0000000000000000"), "half").unwrap();
    let output = check(&dir, &[]).ok();
    assert!(output.starts_with("leftover\t-\t-\t") && output.contains("harmless"), "{output}");
}

#[test]
fn damaged_blob_is_never_sent_and_is_counted() {
    let (mut home, dir) = stopped_server();
    let damaged = largest_blob(&dir);
    corrupt(&damaged, 299_999);
    let tid = damaged.file_stem().unwrap().to_str().unwrap().split_once('.').unwrap().1.to_owned();
    home.server = Serve::start(&dir);
    let name = format!("large@{tid}");
    for (times, transport) in [(1, "tokio"), (2, "mio")] {
        let output = home.run(&["get", &name, "--transport", transport]).fails(6);
        assert!(
            output.contains("is damaged on the server") && output.contains(damaged.to_str().unwrap()),
            "{output}"
        );
        assert_eq!(home.counter("damaged_found"), times);
        assert_eq!(home.counter("damaged"), 0, "the damage was not visible at the start");
    }
    assert_eq!(blob_files(&home.path("cache")), [] as [PathBuf; 0], "the cache has no part of it");
    assert_eq!(fs::read(home.run(&["get", "large"]).ok().trim_end()).unwrap(), bytes("newer", 200_000));
}
