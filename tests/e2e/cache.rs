//! `blobferry cache` and the size limit of a cache.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use serde_json::json;

use super::support::{Home, blob_files, bytes, digest};

const MIB: usize = 1 << 20;

/// Stores the files `a`, `b` and `c` of 1 MiB and caches them; returns the paths in the cache.
fn three_cached_files() -> (Home, Vec<String>) {
    let home = Home::new();
    let files = ["a", "b", "c"].map(|name| home.file(name, bytes(name, MIB)));
    home.put(&files.each_ref().map(String::as_str));
    let paths = home.run(&["get", "a", "b", "c"]).ok().lines().map(str::to_owned).collect();
    (home, paths)
}

/// Lists the cache without a server.
fn ls(home: &Home) -> Vec<String> {
    let ls = home.command_to("127.0.0.1:0", &["cache", "ls"]).output().unwrap();
    String::from_utf8(ls.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Sets the access time of a file to this many seconds ago.
fn set_last_used(path: &str, seconds: u64) {
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    let file = std::fs::File::open(path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_accessed(then)).unwrap();
}

#[test]
fn cache_ls_lists_blobs_plain_long_and_as_json() {
    let (home, paths) = three_cached_files();
    let ids = ls(&home);
    assert_eq!(ids.len(), 3);
    let listed = home.json(&["cache", "ls"]);
    let expected = json!({
        "oid": 1, "tid": listed[0]["tid"], "size": MIB, "on_disk": listed[0]["on_disk"], "used": listed[0]["used"],
        "in_use": false, "pinned": false, "path": paths[0],
    });
    assert_eq!(listed[0], expected);
    assert!(listed[0]["on_disk"].as_u64() >= Some(MIB as u64));
    let long = home.run(&["cache", "ls", "-l"]).ok();
    let fields: Vec<&str> = long.lines().next().unwrap().split('\t').collect();
    assert_eq!(
        (fields[0], fields[1], fields[4], fields[5]),
        (ids[0].as_str(), "1048576", "-", paths[0].as_str())
    );
    let summary = &home.json(&["cache"])[0];
    assert_eq!((&summary["blobs"], &summary["limit"]), (&json!(3), &json!(null)));
    assert!(home.run(&["cache"]).ok().contains("blobs\t3\n"));
}

#[test]
fn cache_limit_evicts_least_recently_used_and_persists() {
    let (home, paths) = three_cached_files();
    (paths.iter().zip([30, 20, 10])).for_each(|(path, ago)| set_last_used(path, ago));
    let output = home.run(&["cache", "gc", "--limit", "2.5M"]).ok();
    assert_eq!(output, "removed 1 blobs (1.0 MiB)\n");
    assert_eq!(paths.iter().map(|path| Path::new(path).exists()).collect::<Vec<_>>(), [false, true, true]);
    home.run(&["get", "a"]).ok();
    assert_eq!(ls(&home).len(), 2);
    assert!(!Path::new(&paths[1]).exists(), "b is the least recently used");
    assert_eq!(home.json(&["cache"])[0]["limit"], 5 * MIB / 2);
    assert_eq!(home.json(&["cache", "gc", "--to", "0"])[0]["blobs"], 2);
    home.run(&["cache", "gc", "--limit", "none"]).ok();
    home.run(&["get", "a", "b", "c"]).ok();
    assert_eq!(ls(&home).len(), 3);
    home.run(&["--cache-limit", "1500K", "cache"]).ok();
    assert_eq!(ls(&home).len(), 1);
}

#[test]
fn file_larger_than_the_cache_limit_is_refused_unrequested() {
    let (home, _) = three_cached_files();
    let sent = home.counter("blobs_sent");
    let big = home.file("big", bytes("big", 3 * MIB));
    home.put(&[&big]);
    let mut get = home.command(&["get", "big"]);
    let output = super::support::Ran::from(get.env("BLOBFERRY_CACHE_LIMIT", "2M").output().unwrap()).fails(1);
    assert!(output.contains("the cache may have 2097152") && output.contains("cache gc --limit"), "{output}");
    assert_eq!(home.counter("blobs_sent"), sent);
    // `get` prints paths that must stay valid, so all files would have to fit together.
    let output = home.run(&["get", "a", "b", "c"]).fails(1);
    assert!(output.contains("are in use"), "{output}");
    // `cat` needs them one at a time.
    assert_eq!(home.command(&["cat", "a", "b", "c"]).output().unwrap().stdout.len(), 3 * MIB);
}

#[test]
fn damaged_cache_files_exit_6_and_are_fetched_again() {
    let (home, paths) = three_cached_files();
    home.run(&["cache", "verify"]).ok();
    std::fs::set_permissions(&paths[1], std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&paths[1]).unwrap();
    file.write_all_at(b"damage", 500_000).unwrap();
    let ran = home.run(&["cache", "verify"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.stdout.starts_with("damaged, removed\t2@"), "{ran:?}");
    assert!(ran.stdout.contains("proven\t2 blobs (2.0 MiB)"), "{ran:?}");
    assert!(ran.stderr.contains("1 blobs were damaged"), "{ran:?}");
    home.run(&["get", "b"]).ok();
    assert_eq!(digest(&paths[1]), blake3::hash(&bytes("b", MIB)).to_hex().to_string());
    let verified = &home.json(&["cache", "verify"])[0];
    assert_eq!(verified, &json!({ "proven": 3, "bytes": 3 * MIB, "unverifiable": 0, "damaged": [] }));
}

#[test]
fn blobs_pinned_by_path_or_id_stay_until_unpinned() {
    let (home, paths) = three_cached_files();
    let second = ls(&home)[1].clone();
    let pinned = home.run(&["cache", "pin", &paths[0], &second]).ok();
    assert!(pinned.starts_with("pinned\t1@") && pinned.ends_with(&format!("pinned\t{second}\n")), "{pinned}");
    assert_eq!(home.run(&["cache", "clear"]).ok(), "removed 1 blobs (1.0 MiB)\n");
    assert_eq!(ls(&home).len(), 2);
    assert_eq!(home.json(&["cache", "pin", "--remove", &second])[0]["pinned"], false);
    home.run(&["cache", "clear"]).ok();
    assert_eq!(blob_files(&home.path("cache")), [Path::new(&paths[0])]);
    home.run(&["cache", "pin", "model.bin"]).fails(2);
    let output = home.run(&["cache", "pin", &second]).fails(3);
    assert!(output.contains("not in the cache: fetch it"), "{output}");
}

#[test]
fn cache_writable_by_others_is_refused_with_advice() {
    let (home, _) = three_cached_files();
    std::fs::set_permissions(home.path("cache"), std::fs::Permissions::from_mode(0o777)).unwrap();
    for arguments in [&["get", "a"][..], &["cache"]] {
        let output = home.run(arguments).fails(1);
        assert!(output.contains("chmod -R go-w") && output.contains("--cache"), "{output}");
    }
}
