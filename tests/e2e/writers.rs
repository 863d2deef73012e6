//! Several who write at once, and files that do not keep still.

use std::process::Child;

use super::support::{Home, bytes, end};
use super::throttled_proxy::{ThrottledProxy, UP};

/// What is carried of the file before it stops, and the file: larger by more than what may be on its way.
const HALF: u64 = 500_000;
const SIZE: usize = 8_000_000;

/// Begins to put a file, and stops half-way: what the names are like is known to it by then.
fn put_half(home: &Home, proxy: &ThrottledProxy, arguments: &[&str]) -> Child {
    proxy.limit(UP, HALF);
    let child = home.command_to(&proxy.address, &[&["put"], arguments].concat()).spawn().unwrap();
    proxy.wait_until_held();
    child
}

#[test]
fn two_puts_into_one_directory_at_once_both_succeed() {
    let home = Home::new();
    let (slow, fast) = (home.file("slow", bytes("slow", SIZE)), home.file("fast", "fast"));
    // The second time the directory is there already.
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
    assert!(home.counter("conflicts") >= 2, "they really met");
}

#[test]
fn of_two_puts_to_one_name_the_second_is_4_and_says_both_revisions() {
    let home = Home::new();
    let file = home.file("file", bytes("old", SIZE));
    let (proxy, other) = (ThrottledProxy::to(&home.server.address), home.file("other/file", "other"));
    // First the name is new for both, then both make a new revision.
    for base in [None, Some(())] {
        let first = put_half(&home, &proxy, &[&file]);
        let base = base.map(|()| home.json(&["log", "file"])[0]["tid"].as_str().unwrap().to_owned());
        let committed = home.put(&[&other]);
        proxy.open();
        let said = end(first).fails(4);
        assert!(said.contains("`file` was") && said.contains(&committed), "{said}");
        assert!(said.contains("nothing was changed") && said.contains("blobferry log file"), "{said}");
        if let Some(base) = base {
            assert!(said.contains(&base), "{said}");
        }
        assert_eq!(home.run(&["cat", "file"]).ok(), "other");
    }
}

#[test]
fn a_name_that_was_changed_meanwhile_is_not_removed_with_its_directory() {
    let home = Home::new();
    let file = home.file("d/file", bytes("old", SIZE));
    home.put(&["-r", home.path("d").to_str().unwrap()]);
    let proxy = ThrottledProxy::to(&home.server.address);
    let first = put_half(&home, &proxy, &["--to", "d", &file]);
    home.run(&["rm", "-r", "d"]).ok();
    proxy.open();
    let said = end(first).fails(4);
    assert!(said.contains("`d/file` was removed meanwhile"), "{said}");
    assert_eq!(home.ls("/"), [""; 0]);
}

#[test]
fn a_file_that_changes_while_it_is_put_is_1_and_nothing_is_published() {
    let home = Home::new();
    let (file, other) = (home.file("file", bytes("file", SIZE)), home.file("other", "other"));
    let proxy = ThrottledProxy::to(&home.server.address);
    let put = put_half(&home, &proxy, &[&other, &file]);
    home.file("file", "short");
    proxy.open();
    let said = end(put).fails(1);
    assert!(said.starts_with(&format!("blobferry: {file}: the file became shorter")), "{said}");
    assert!(said.contains("nothing was published"), "{said}");
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
