//! Commands on names: `put`, `get`, `cat`, `ls`, `log`, `rm`.

use serde_json::json;

use super::support::{Home, MAX_MEMORY, Ran, bytes};

/// Starts a server, puts `a` twice and `d/b` once; returns the two tids of `a`.
fn two_files() -> (Home, String, String) {
    let home = Home::new();
    let a = home.file("a", "first");
    home.file("d/b", "b");
    let first = home.put(&["-m", "the first", &a]);
    home.put(&["-r", home.path("d").to_str().unwrap()]);
    home.file("a", "second!");
    let second = home.put(&["-m", "the second", &a]);
    (home, first, second)
}

#[test]
fn put_files_are_listed_logged_and_read_at_any_tid() {
    let (home, first, second) = two_files();
    assert_eq!(home.ls("/"), ["a", "d"]);
    assert_eq!(home.ls("d"), ["b"]);
    assert_eq!(home.ls(&format!("/@{first}")), ["a"]);
    assert_eq!(home.run(&["cat", "a", "d/b"]).ok(), "second!b");
    assert_eq!(home.run(&["cat", &format!("a@{first}")]).ok(), "first");
    let got = home.run(&["get", &format!("a@{first}"), "a", &format!("a@{second}")]).ok();
    let contents: Vec<String> = got.lines().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert_eq!(contents, ["first", "second!", "second!"]);
    let log = home.run(&["log", "a"]).ok();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!((lines[0][0], lines[0][2], lines[0][4]), (second.as_str(), "7", "the second"));
    assert_eq!((lines[1][0], lines[1][2], lines[1][4]), (first.as_str(), "5", "the first"));
    let long = home.run(&["ls", "-l", "d"]).ok();
    assert_eq!(long.trim_end().split('\t').nth(4), Some("b"));
}

#[test]
fn get_writes_copies_to_the_given_path() {
    let (home, first, _) = two_files();
    let (copy, dir) = (home.path("copy"), home.path("copies"));
    home.run(&["get", &format!("a@{first}"), "-o", copy.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read(&copy).unwrap(), b"first");
    assert_eq!(home.run(&["get", "a", "d/b", "-o", dir.to_str().unwrap()]).ok(), "");
    assert_eq!(std::fs::read(dir.join("a")).unwrap(), b"second!");
    assert_eq!(std::fs::read(dir.join("b")).unwrap(), b"b");
}

#[test]
fn rm_is_atomic_and_keeps_earlier_revisions() {
    let (home, _, second) = two_files();
    home.run(&["rm", "a", "nonesuch"]).fails(3);
    home.run(&["rm", "a", "d"]).fails(2);
    assert_eq!(home.ls("/"), ["a", "d"]);
    let removed = home.run(&["rm", "-r", "-m", "away", "a", "d"]).ok();
    assert_eq!(removed.lines().count(), 2);
    assert_eq!(home.ls("/"), [""; 0]);
    home.run(&["cat", "a"]).fails(3);
    assert_eq!(home.run(&["cat", &format!("a@{second}"), &format!("d/b@{second}")]).ok(), "second!b");
    let log = home.run(&["log", &format!("a@{second}")]).ok();
    assert!(log.lines().next().unwrap().ends_with("\taway"), "{log}");

    assert!(home.run(&["pack"]).ok().starts_with("forgot "));
    let stderr = home.run(&["cat", &format!("a@{second}")]).fails(3);
    assert!(stderr.contains("packed"), "{stderr}");
    assert_eq!(home.counter("blobs"), 0);
}

#[test]
fn missing_name_exits_3_with_advice() {
    let (home, first, _) = two_files();
    let stderr = home.run(&["get", "a", "d/nonesuch"]).fails(3);
    assert!(stderr.contains("`d/nonesuch`") && stderr.contains("blobferry ls d"), "{stderr}");
    home.run(&["cat", &format!("d/b@{first}")]).fails(3);
    home.run(&["ls", "a@ffffffffffffffff"]).fails(3);
    home.run(&["get", "d"]).fails(1);
    home.run(&["get", "a/b"]).fails(1);
}

#[test]
fn invalid_names_are_refused_before_sending() {
    let home = Home::new();
    for name in ["a//b", "..", "a/./b", ""] {
        assert_eq!(home.run(&["get", name]).code, 2, "{name}");
    }
    let (long, file) = ("n".repeat(256), home.file("file", "x"));
    assert_eq!(home.run(&["put", "--to", &long, &file]).code, 2);
    let same = home.file("other/file", "y");
    let stderr = home.run(&["put", &file, &same]).fails(2);
    assert!(stderr.contains("would both be `file`"), "{stderr}");
    assert_eq!(home.ls("/"), [""; 0]);
}

#[test]
fn json_output_has_its_documented_fields() {
    let (home, first, second) = two_files();
    let digest = blake3::hash(b"second!").to_hex().to_string();
    let log = &home.json(&["log", "a"])[0];
    let time = log["time"].clone();
    assert!(time.as_str().unwrap().ends_with('Z'));
    let user = log["user"].clone();
    let expected = json!({
        "tid": second, "time": time, "size": 7, "digest": digest, "user": user, "message": "the second",
    });
    assert_eq!(log, &expected);
    assert_eq!(home.json(&["log", "a"])[1]["tid"], first);
    let listed = json!({
        "name": "a", "kind": "file", "oid": 1, "tid": second, "time": time, "size": 7, "digest": digest,
        "executable": false,
    });
    assert_eq!(home.json(&["ls", "-l"])[0], listed);
    assert_eq!(home.json(&["ls"])[0], json!({ "name": "a", "kind": "file", "oid": 1 }));
    assert_eq!(home.json(&["ls"])[1]["kind"], "directory");
    let path = home.path("cache").join(format!("1/0.{second}.blob"));
    let got = json!({ "name": "a", "oid": 1, "tid": second, "size": 7, "digest": digest, "path": path });
    assert_eq!(home.json(&["get", "a"]), [got]);
    let put = &home.json(&["put", &home.file("c", "c")])[0];
    let expected = json!({
        "oid": put["oid"], "tid": put["tid"], "size": 1, "digest": blake3::hash(b"c").to_hex().to_string(), "name": "c",
    });
    assert_eq!(put, &expected);
    let removed = &home.json(&["rm", "c"])[0];
    assert_eq!(removed, &json!({ "tid": removed["tid"], "name": "c" }));
    let status = &home.json(&["status"])[0];
    assert_eq!(status["last_tid"], removed["tid"]);
    for counter in
        "objects blobs blobs_sent bytes_sent bytes_received commits aborts conflicts connections rss_bytes"
            .split(' ')
    {
        assert!(status[counter].is_u64(), "{counter}: {status}");
    }
    let packed = &home.json(&["pack"])[0];
    assert!(packed["revisions"].as_u64() >= Some(2) && packed["bytes"].is_u64(), "{packed}");
}

#[test]
fn put_caches_only_with_the_cached_option() {
    let home = Home::new();
    let file = home.file("file", bytes("file", 100_000));
    home.put(&[&file]);
    home.run(&["get", "file"]).ok();
    assert_eq!(home.counter("blobs_sent"), 1, "it was not cached");
    home.put(&["--cached", &file]);
    let path = home.run(&["get", "file"]).ok();
    assert_eq!(home.counter("blobs_sent"), 1, "it was cached");
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), bytes("file", 100_000));
    assert!(std::path::Path::new(&file).exists(), "the user's file stays");
}

#[test]
fn large_directory_is_put_listed_and_removed() {
    let home = Home::new();
    for n in 0..3000 {
        home.file(&format!("many/{n:04}"), n.to_string());
    }
    let many = home.path("many");
    let mut put = home.command(&["put", "-r", many.to_str().unwrap()]);
    let put = Ran::from(put.env("RUST_LOG", "blobferry=debug").output().unwrap());
    assert!(put.peak_memory() < MAX_MEMORY, "{}", put.peak_memory());
    assert_eq!(put.ok().lines().count(), 3000);
    assert_eq!(home.ls("many"), (0..3000).map(|n| format!("{n:04}")).collect::<Vec<_>>());
    assert_eq!(home.run(&["cat", "many/0000", "many/2999"]).ok(), "02999");
    // One more name changes only one part of the directory.
    let before = home.counter("revisions");
    home.put(&["--to", "many", &home.file("one more", "")]);
    assert_eq!(home.counter("revisions") - before, 2);
    assert!(home.server.peak_memory() < MAX_MEMORY, "{}", home.server.peak_memory());
    home.run(&["rm", "-r", "many"]).ok();
    assert_eq!(home.counter("objects"), 1, "the root");
}

#[test]
fn closed_output_pipe_is_not_an_error() {
    let home = Home::new();
    home.put(&[&home.file("file", bytes("file", 1_000_000))]);
    let mut child = home.command(&["cat", "file"]).spawn().unwrap();
    drop(child.stdout.take());
    let ran = child.wait_with_output().unwrap();
    assert_eq!((ran.status.code(), ran.stderr.as_slice()), (Some(0), &b""[..]));
}
