//! What a program gets that adds this crate.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::process::Command;

/// Returns the names of all crates that a build with these features has, build scripts among them.
fn crates(features: &str) -> Vec<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--package", "blobferry", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}", "--no-default-features", "--features", features])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn a_client_has_no_store_and_no_sqlite() {
    for features in ["tokio,client", "mio,client"] {
        let crates = crates(features);
        assert!(crates.iter().any(|name| name == "blobferry-cache"), "{crates:?}");
        for absent in ["blobferry-store", "rusqlite", "libsqlite3-sys"] {
            assert!(!crates.iter().any(|name| name == absent), "{features}: {absent}");
        }
    }
}

#[test]
fn a_server_has_no_cache() {
    for features in ["tokio,server", "mio,server"] {
        let crates = crates(features);
        assert!(crates.iter().any(|name| name == "blobferry-store"), "{crates:?}");
        for absent in ["blobferry-cache", "rusqlite", "fs2"] {
            assert!(!crates.iter().any(|name| name == absent), "{features}: {absent}");
        }
    }
}

#[test]
fn sqlite_is_there_if_it_is_chosen() {
    assert!(crates("tokio,sqlite").iter().any(|name| name == "rusqlite"));
}
