//! Processes of one machine that need the same blob at the same time share one download.

use std::collections::BTreeSet;
use std::process::Child;

use super::support::{Home, MAX_MEMORY, Ran, bytes, digest, end};
use super::throttled_proxy::{DOWN, ThrottledProxy};

/// Bytes that the proxy passes: more than small messages, and less than a blob minus all buffers on
/// the way.
const HALF: u64 = 400 << 10;

#[test]
fn many_processes_get_each_blob_in_one_send() {
    let home = Home::new();
    let mut files = vec![home.file("big", bytes("big", 64 << 20)), home.file("empty", "")];
    files.extend((0..200).map(|n| home.file(&format!("small-{n}"), bytes(&n.to_string(), 10 + n * 100))));
    let debug = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env("RUST_LOG", "blobferry=debug");
        command
    };

    let paths: Vec<&str> = files.iter().map(String::as_str).collect();
    let put = Ran::from(debug(&[&["put"], &paths[..]].concat()).output().unwrap());
    assert!(put.peak_memory() < MAX_MEMORY, "{put:?}");
    let put = put.ok();
    let fields: Vec<Vec<&str>> = put.lines().map(|line| line.split('\t').collect()).collect();
    let tids: BTreeSet<&str> = fields.iter().map(|fields| fields[1]).collect();
    assert_eq!(tids.len(), 1, "one transaction");
    let names: Vec<&str> = fields.iter().map(|fields| fields[4]).collect();

    let before = home.counter("blobs_sent");
    let get = [&["get"], &names[..]].concat();
    let children: Vec<Child> = (0..8).map(|_| debug(&get).spawn().unwrap()).collect();
    let all: Vec<Ran> = children.into_iter().map(end).collect();
    assert_eq!(home.counter("blobs_sent") - before, names.len() as u64, "each blob once");
    assert!(home.server.peak_memory() < MAX_MEMORY, "{}", home.server.peak_memory());
    for got in &all {
        assert!(got.peak_memory() < MAX_MEMORY, "{}", got.peak_memory());
    }
    let outputs: BTreeSet<String> = all.into_iter().map(Ran::ok).collect();
    assert_eq!(outputs.len(), 1, "the same files");
    for (path, fields) in outputs.first().unwrap().lines().zip(fields) {
        assert_eq!(digest(path), fields[3], "{path}");
    }
}

#[test]
fn sixteen_processes_share_one_download() {
    let home = Home::new();
    let file = home.file("blob", bytes("blob", 8 << 20));
    home.put(&[&file]);
    let (before, proxy) = (home.counter("blobs_sent"), ThrottledProxy::to(&home.server.address));
    proxy.limit(DOWN, HALF);
    let children: Vec<Child> =
        (0..16).map(|_| home.command_to(&proxy.address, &["get", "blob"]).spawn().unwrap()).collect();
    proxy.wait_for_connections(16);
    proxy.wait_until_held();
    proxy.open();
    let paths: BTreeSet<String> = children.into_iter().map(|child| end(child).ok()).collect();
    assert_eq!(paths.len(), 1);
    assert_eq!(digest(paths.first().unwrap().trim_end()), digest(file));
    assert_eq!(home.counter("blobs_sent") - before, 1);
}

#[test]
fn waiter_takes_over_from_a_killed_downloader() {
    let home = Home::new();
    let file = home.file("blob", bytes("blob", 8 << 20));
    home.put(&[&file]);
    let sent = || home.counter("blobs_sent") + home.counter("ranges_sent");
    let (before, proxy) = (sent(), ThrottledProxy::to(&home.server.address));
    proxy.limit(DOWN, HALF);
    let get = || home.command_to(&proxy.address, &["get", "blob"]).spawn().unwrap();
    let mut downloader = get();
    proxy.wait_until_held();
    let others: Vec<Child> = (0..15).map(|_| get()).collect();
    proxy.wait_for_connections(16);
    downloader.kill().unwrap();
    downloader.wait().unwrap();
    proxy.open();
    let paths: BTreeSet<String> = others.into_iter().map(|child| end(child).ok()).collect();
    assert_eq!(paths.len(), 1);
    assert_eq!(digest(paths.first().unwrap().trim_end()), digest(file));
    assert_eq!(
        sent() - before,
        1,
        "the killed process never got the last byte, and one waiter requested the rest"
    );
}

#[test]
fn demo_sends_each_blob_once_and_leaves_nothing() {
    let (home, tmp) = (Home::new(), tempfile::tempdir().unwrap());
    let demo = |arguments: &[&str]| {
        Ran::from(home.command(arguments).env("TMPDIR", tmp.path()).output().unwrap()).ok()
    };
    let (one, other) = (home.file("one", bytes("one", 3 << 20)), home.file("other", ""));
    let stdout = demo(&["demo", &one, &other]);
    assert!(
        stdout.ends_with("All bytes agree. The server sent 2 blobs for 16 that were asked for.\n"),
        "{stdout}"
    );
    let report: serde_json::Value = serde_json::from_str(&demo(&["demo", "--json"])).unwrap();
    let downloaded =
        report["workers"].as_array().unwrap().iter().map(|worker| worker["downloaded"].as_u64().unwrap());
    assert_eq!(downloaded.sum::<u64>(), 12);
    assert_eq!(report["blobs_sent"], 12);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}
