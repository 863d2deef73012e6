//! `blobferry check`: what it finds, what it mends, what it leaves alone, and what it says; and that a server never
//! sends a damaged blob as good.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use super::support::{Home, Ran, Serve, blob_files, blobferry, bytes};

/// Checks a server's directory.
pub(crate) fn check(dir: &Path, more: &[&str]) -> Ran {
    blobferry(&["check", "--dir", dir.to_str().unwrap()]).args(more).output().unwrap().into()
}

/// The same, with all that it says: every finding, the last line apart.
fn findings(dir: &Path, more: &[&str]) -> (i32, Vec<Value>, Value) {
    let Ran { code, stdout, stderr } = check(dir, &[&["--json"], more].concat());
    let mut lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.pop().unwrap_or_else(|| panic!("{stderr}"));
    (code, lines, last)
}

/// A server's directory with a large blob, a small one, and a replaced one; nobody serves it.
fn stopped() -> (Home, PathBuf) {
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

/// The largest blob file.
fn largest(dir: &Path) -> PathBuf {
    blob_files(dir).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

/// Changes one byte of a read-only file, as a disk does that forgets.
fn rot(path: &Path, at: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// Every file below a directory, and what is in it.
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
fn a_store_in_which_all_is_well_is_0_and_left_as_it_is() {
    let (_home, dir) = stopped();
    let before = snapshot(&dir);
    let said = check(&dir, &[]).ok();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("3 blobs") && said.contains("all is well"), "{said}");
    let (code, found, last) = findings(&dir, &[]);
    assert_eq!((code, found.len(), &last["damage"], &last["bytes"]), (0, 0, &0.into(), &500_500.into()));
    assert!(snapshot(&dir) == before, "nothing was changed");
}

#[test]
fn a_directory_that_is_served_is_refused() {
    let home = Home::new();
    let said = check(&home.path("server"), &[]).fails(1);
    assert!(said.contains("in use by another server"), "{said}");
}

#[test]
fn a_directory_without_a_store_is_refused_and_not_made_into_one() {
    let dir = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--repair"]] {
        let said = check(dir.path(), more).fails(1);
        assert!(said.contains("is not a directory of blobs"), "{said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn blobs_without_a_database_are_kept_until_it_is_restored() {
    let (_home, dir) = stopped();
    let database = dir.join("store.sqlite");
    fs::rename(&database, dir.join("backup")).unwrap();
    let blobs = blob_files(&dir).len();
    for arguments in [&["check", "--repair"][..], &["check"], &["serve", "--listen", "127.0.0.1:0"]] {
        let ran: Ran = blobferry(arguments).args(["--dir", dir.to_str().unwrap()]).output().unwrap().into();
        let said = ran.fails(6);
        assert!(said.contains("store.sqlite is missing or empty"), "{said}");
        assert_eq!(blob_files(&dir).len(), blobs, "{arguments:?}");
    }
    fs::rename(dir.join("backup"), &database).unwrap();
    assert!(check(&dir, &[]).ok().contains("all is well"));
}

#[test]
fn a_damaged_and_a_missing_blob_are_6_and_listed_with_object_path_and_advice() {
    let (_home, dir) = stopped();
    let damaged = largest(&dir);
    rot(&damaged, 123_456);
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
    assert!(damaged.exists(), "what may be restored in part is not taken away");
    let ran = check(&dir, &[]);
    assert!(ran.stderr.contains("is damaged: 2 of"), "{ran:?}");
}

#[test]
fn a_small_blob_that_has_rotted_in_the_database_is_found() {
    let (_home, dir) = stopped();
    let database = dir.join("store.sqlite");
    let content = fs::read(&database).unwrap();
    let small = bytes("small", 500);
    let at = content.windows(64).position(|window| window == &small[..64]).unwrap();
    rot(&database, at as u64);
    let (code, found, _) = findings(&dir, &[]);
    assert_eq!((code, found.len()), (6, 1), "{found:?}");
    assert_eq!(
        (&found[0]["kind"], &found[0]["path"]),
        (&"damaged".into(), &database.to_str().unwrap().into())
    );
}

#[test]
fn what_belongs_to_nothing_is_mended_by_a_repair_and_by_nothing_else() {
    let (mut home, dir) = stopped();
    let orphan = largest(&dir).with_file_name("77.00000000000000ff.blob");
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
fn what_a_crash_leaves_of_a_transaction_that_never_was_is_no_damage() {
    let (_home, dir) = stopped();
    fs::write(dir.join("blobs/tmp/.staged-0000000000000000"), "half").unwrap();
    let said = check(&dir, &[]).ok();
    assert!(said.starts_with("leftover\t-\t-\t") && said.contains("harmless"), "{said}");
}

#[test]
fn a_damaged_blob_is_never_sent_as_good_and_is_counted() {
    let (mut home, dir) = stopped();
    let damaged = largest(&dir);
    rot(&damaged, 299_999);
    let tid = damaged.file_stem().unwrap().to_str().unwrap().split_once('.').unwrap().1.to_owned();
    home.server = Serve::start(&dir);
    let name = format!("large@{tid}");
    for (times, transport) in [(1, "tokio"), (2, "mio")] {
        let said = home.run(&["get", &name, "--transport", transport]).fails(6);
        assert!(
            said.contains("is damaged on the server") && said.contains(damaged.to_str().unwrap()),
            "{said}"
        );
        assert_eq!(home.counter("damaged_found"), times);
        assert_eq!(home.counter("damaged"), 0, "at the start nothing was to be seen");
    }
    assert_eq!(blob_files(&home.path("cache")), [] as [PathBuf; 0], "nothing of it is in the cache");
    assert_eq!(fs::read(home.run(&["get", "large"]).ok().trim_end()).unwrap(), bytes("newer", 200_000));
}
