//! `blobferry cache`, and the limit of a cache.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use serde_json::json;

use super::support::{Home, blob_files, bytes, digest};

const MIB: usize = 1 << 20;

/// A server with the files `a`, `b` and `c` of 1 MiB, all of them in the cache; the paths there.
fn three() -> (Home, Vec<String>) {
    let home = Home::new();
    let files = ["a", "b", "c"].map(|name| home.file(name, bytes(name, MIB)));
    home.put(&files.each_ref().map(String::as_str));
    let paths = home.run(&["get", "a", "b", "c"]).ok().lines().map(str::to_owned).collect();
    (home, paths)
}

/// What the cache has now; no server is asked.
fn ls(home: &Home) -> Vec<String> {
    let ls = home.command_to("127.0.0.1:0", &["cache", "ls"]).output().unwrap();
    String::from_utf8(ls.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Lets it look as if a file was used so many seconds ago.
fn used(path: &str, seconds: u64) {
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    let file = std::fs::File::open(path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_accessed(then)).unwrap();
}

#[test]
fn blobs_are_listed_plain_long_and_as_json_and_the_whole_is_told() {
    let (home, paths) = three();
    let ids = ls(&home);
    assert_eq!(ids.len(), 3);
    let listed = home.json(&["cache", "ls"]);
    let told = json!({
        "oid": 1, "tid": listed[0]["tid"], "size": MIB, "on_disk": listed[0]["on_disk"], "used": listed[0]["used"],
        "in_use": false, "pinned": false, "path": paths[0],
    });
    assert_eq!(listed[0], told);
    assert!(listed[0]["on_disk"].as_u64() >= Some(MIB as u64));
    let long = home.run(&["cache", "ls", "-l"]).ok();
    let fields: Vec<&str> = long.lines().next().unwrap().split('\t').collect();
    assert_eq!(
        (fields[0], fields[1], fields[4], fields[5]),
        (ids[0].as_str(), "1048576", "-", paths[0].as_str())
    );
    let whole = &home.json(&["cache"])[0];
    assert_eq!((&whole["blobs"], &whole["limit"]), (&json!(3), &json!(null)));
    assert!(home.run(&["cache"]).ok().contains("blobs\t3\n"));
}

#[test]
fn a_limit_lets_what_was_used_longest_ago_go_and_holds_for_later_commands() {
    let (home, paths) = three();
    (paths.iter().zip([30, 20, 10])).for_each(|(path, ago)| used(path, ago));
    let said = home.run(&["cache", "gc", "--limit", "2.5M"]).ok();
    assert_eq!(said, "removed 1 blobs (1.0 MiB)\n");
    assert_eq!(paths.iter().map(|path| Path::new(path).exists()).collect::<Vec<_>>(), [false, true, true]);
    home.run(&["get", "a"]).ok();
    assert_eq!(ls(&home).len(), 2);
    assert!(!Path::new(&paths[1]).exists(), "b was used longest ago");
    assert_eq!(home.json(&["cache"])[0]["limit"], 5 * MIB / 2);
    assert_eq!(home.json(&["cache", "gc", "--to", "0"])[0]["blobs"], 2);
    home.run(&["cache", "gc", "--limit", "none"]).ok();
    home.run(&["get", "a", "b", "c"]).ok();
    assert_eq!(ls(&home).len(), 3);
    home.run(&["--cache-limit", "1500K", "cache"]).ok();
    assert_eq!(ls(&home).len(), 1);
}

#[test]
fn a_file_that_can_not_fit_is_refused_with_figures_before_it_is_asked_for() {
    let (home, _) = three();
    let sent = home.counter("blobs_sent");
    let big = home.file("big", bytes("big", 3 * MIB));
    home.put(&[&big]);
    let mut get = home.command(&["get", "big"]);
    let said = super::support::Ran::from(get.env("BLOBFERRY_CACHE_LIMIT", "2M").output().unwrap()).fails(1);
    assert!(said.contains("the cache may have 2097152") && said.contains("cache gc --limit"), "{said}");
    assert_eq!(home.counter("blobs_sent"), sent);
    // What is told to be there is there: not all of these fit.
    let said = home.run(&["get", "a", "b", "c"]).fails(1);
    assert!(said.contains("are in use"), "{said}");
    // One after the other they do.
    assert_eq!(home.command(&["cat", "a", "b", "c"]).output().unwrap().stdout.len(), 3 * MIB);
}

#[test]
fn damaged_files_are_6_and_the_next_get_fetches_them_again() {
    let (home, paths) = three();
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
fn what_is_pinned_by_path_or_id_stays_until_the_pin_is_removed() {
    let (home, paths) = three();
    let second = ls(&home)[1].clone();
    let pinned = home.run(&["cache", "pin", &paths[0], &second]).ok();
    assert!(pinned.starts_with("pinned\t1@") && pinned.ends_with(&format!("pinned\t{second}\n")), "{pinned}");
    assert_eq!(home.run(&["cache", "clear"]).ok(), "removed 1 blobs (1.0 MiB)\n");
    assert_eq!(ls(&home).len(), 2);
    assert_eq!(home.json(&["cache", "pin", "--remove", &second])[0]["pinned"], false);
    home.run(&["cache", "clear"]).ok();
    assert_eq!(blob_files(&home.path("cache")), [Path::new(&paths[0])]);
    home.run(&["cache", "pin", "model.bin"]).fails(2);
    let said = home.run(&["cache", "pin", &second]).fails(3);
    assert!(said.contains("not in the cache: fetch it"), "{said}");
}

#[test]
fn a_cache_that_others_can_write_to_is_refused_with_what_to_do() {
    let (home, _) = three();
    std::fs::set_permissions(home.path("cache"), std::fs::Permissions::from_mode(0o777)).unwrap();
    for arguments in [&["get", "a"][..], &["cache"]] {
        let said = home.run(arguments).fails(1);
        assert!(said.contains("chmod -R go-w") && said.contains("--cache"), "{said}");
    }
}
