//! Concurrent writers, and files that change while they are stored.

use std::process::Child;

use super::support::{Home, bytes, end};
use super::throttled_proxy::{ThrottledProxy, UP};

/// Bytes of the file that pass before the proxy stops.
const HALF: u64 = 500_000;
/// Size of the file in bytes: larger than [`HALF`] and all buffers on the way together.
const SIZE: usize = 8_000_000;

/// Starts to put a file and stops it half-way. The client has read the directory by then.
fn put_half(home: &Home, proxy: &ThrottledProxy, arguments: &[&str]) -> Child {
    proxy.limit(UP, HALF);
    let child = home.command_to(&proxy.address, &[&["put"], arguments].concat()).spawn().unwrap();
    proxy.wait_until_held();
    child
}

#[test]
fn two_concurrent_puts_into_a_directory_succeed() {
    let home = Home::new();
    let (slow, fast) = (home.file("slow", bytes("slow", SIZE)), home.file("fast", "fast"));
    // In the second round the directory exists.
    for (round, expected) in [(1, &["fast", "slow"][..]), (2, &["fast", "fast2", "slow", "slow2"])] {
        let proxy = ThrottledProxy::to(&home.server.address);
        let (mut slow, mut fast) = (slow.clone(), fast.clone());
        if round == 2 {
            (slow, fast) = (home.file("slow2", bytes("slow2", SIZE)), home.file("fast2", "fast2"));
        }
        let first = put_half(&home, &proxy, &["--to", "d/e", &slow]);
        home.run(&["put", "--to", "d/e", &fast]).ok();
        proxy.open();
        end(first).ok();
        assert_eq!(home.ls("d/e"), expected);
    }
    assert_eq!(home.run(&["cat", "d/e/fast2"]).ok(), "fast2");
    assert!(home.counter("conflicts") >= 2, "the puts conflicted");
}

#[test]
fn second_put_to_a_name_exits_4_and_names_revisions() {
    let home = Home::new();
    let file = home.file("file", bytes("old", SIZE));
    let (proxy, other) = (ThrottledProxy::to(&home.server.address), home.file("other/file", "other"));
    // In the first round the name is new to both; in the second both make a new revision.
    for base in [None, Some(())] {
        let first = put_half(&home, &proxy, &[&file]);
        let base = base.map(|()| home.json(&["log", "file"])[0]["tid"].as_str().unwrap().to_owned());
        let committed = home.put(&[&other]);
        proxy.open();
        let stderr = end(first).fails(4);
        assert!(stderr.contains("`file` was") && stderr.contains(&committed), "{stderr}");
        assert!(stderr.contains("nothing was changed") && stderr.contains("blobferry log file"), "{stderr}");
        if let Some(base) = base {
            assert!(stderr.contains(&base), "{stderr}");
        }
        assert_eq!(home.run(&["cat", "file"]).ok(), "other");
    }
}

#[test]
fn put_under_a_removed_directory_exits_4() {
    let home = Home::new();
    let file = home.file("d/file", bytes("old", SIZE));
    home.put(&["-r", home.path("d").to_str().unwrap()]);
    let proxy = ThrottledProxy::to(&home.server.address);
    let first = put_half(&home, &proxy, &["--to", "d", &file]);
    home.run(&["rm", "-r", "d"]).ok();
    proxy.open();
    let stderr = end(first).fails(4);
    assert!(stderr.contains("`d/file` was removed meanwhile"), "{stderr}");
    assert_eq!(home.ls("/"), [""; 0]);
}

#[test]
fn file_changed_during_put_exits_1_and_publishes_nothing() {
    let home = Home::new();
    let (file, other) = (home.file("file", bytes("file", SIZE)), home.file("other", "other"));
    let proxy = ThrottledProxy::to(&home.server.address);
    let put = put_half(&home, &proxy, &[&other, &file]);
    home.file("file", "short");
    proxy.open();
    let stderr = end(put).fails(1);
    assert!(stderr.starts_with(&format!("blobferry: {file}: the file became shorter")), "{stderr}");
    assert!(stderr.contains("nothing was published"), "{stderr}");
    assert_eq!(home.ls("/"), [""; 0]);
}

#[test]
fn ten_writers_of_one_directory_all_succeed() {
    let home = Home::new();
    let file = |n: u32| home.file(&format!("file-{n}"), n.to_string());
    let put = |n| home.command(&["put", "--to", "d", &file(n)]).spawn().unwrap();
    let children: Vec<Child> = (0..10).map(put).collect();
    children.into_iter().for_each(|child| drop(end(child).ok()));
    assert_eq!(home.ls("d"), (0..10).map(|n| format!("file-{n}")).collect::<Vec<_>>());
}
