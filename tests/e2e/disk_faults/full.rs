//! Disks that are full or become full.

use std::fs;

use rustix::process::Signal;

use super::{Disk, Ledger, serve_quietly};
use crate::support::{Home, bytes, end};
use crate::throttled_proxy::{ThrottledProxy, UP};

#[test]
fn upload_larger_than_the_disk_is_refused_before_its_bytes() {
    // `tmpfs` can reserve space, `ext2` cannot.
    for disk in [Disk::in_memory(8), Disk::in_a_file("ext2", 8)].into_iter().flatten() {
        let home = Home::with(|_| serve_quietly(&disk.path("server")));
        let large = home.file("large", bytes("large", 20 << 20));
        let stderr = home.run(&["put", &large]).fails(1);
        assert!(
            stderr.contains("the server has no room left: no room on the disk for 20971520 more bytes"),
            "{stderr}"
        );
        assert!(stderr.contains(disk.path("server").to_str().unwrap()), "{stderr}");
        assert!(stderr.contains("bytes are free"), "{stderr}");
        assert_eq!(home.counter("bytes_received"), 0);
        let (uploads, staged) = (home.counter("uploads"), home.counter("staged_bytes"));
        assert_eq!((uploads, staged), (0, 0));
        home.put(&[&home.file("small", bytes("small", 1 << 20))]);
    }
}

#[test]
fn uploads_in_progress_reserve_their_disk_space() {
    for disk in [Disk::in_memory(16), Disk::in_a_file("ext2", 16)].into_iter().flatten() {
        let home = Home::with(|_| serve_quietly(&disk.path("server")));
        // The proxy holds up one upload.
        let proxy = ThrottledProxy::to(&home.server.address);
        proxy.limit(UP, 2 << 20);
        let first = home.file("first", bytes("first", 8 << 20));
        let put = home.command_to(&proxy.address, &["put", &first]).spawn().unwrap();
        proxy.wait_until_held();
        let second = home.file("second", bytes("second", 10 << 20));
        // The server soon receives what has passed.
        while home.counter("uploads") == 0 {}
        let stderr = home.run(&["put", &second]).fails(1);
        assert!(stderr.contains("no room on the disk for 10485760 more bytes"), "{stderr}");
        assert_eq!((home.counter("uploads"), home.counter("staged_bytes")), (1, 8 << 20));
        proxy.open();
        assert_eq!(end(put).code, 0);
        assert_eq!((home.counter("uploads"), home.counter("staged_bytes")), (0, 0));
        assert_eq!(home.ls("/"), ["first"]);
    }
}

#[test]
fn disk_filled_during_upload_fails_only_that_upload() {
    let Some(disk) = Disk::in_a_file("ext2", 16) else { return };
    let server = disk.path("server");
    let mut home = Home::with(|_| serve_quietly(&server));
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    let proxy = ThrottledProxy::to(&home.server.address);
    proxy.limit(UP, 2 << 20);
    let large = home.file("large", bytes("large", 8 << 20));
    let put = home.command_to(&proxy.address, &["put", &large]).spawn().unwrap();
    proxy.wait_until_held();
    while home.counter("uploads") == 0 {}
    let ballast = disk.path("ballast");
    // Another program fills the disk.
    let full = fs::write(&ballast, vec![1; 16 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    proxy.open();
    let stderr = end(put).fails(1);
    assert!(
        stderr.contains("no room on the disk for") && stderr.contains(server.to_str().unwrap()),
        "{stderr}"
    );
    ledger.verify(&home);
    fs::remove_file(&ballast).unwrap();
    assert_eq!(ledger.put(&home, &server, "when there is room again"), None);
    assert_eq!(home.server.end(Signal::TERM), Some(0));
    home.server = serve_quietly(&server);
    ledger.survives_a_restart(&mut home, &server);
}

#[test]
fn full_disk_refuses_commits_and_recovers_with_space() {
    let Some(disk) = Disk::in_memory(6) else { return };
    let server = disk.path("server");
    let mut home = Home::with(|_| serve_quietly(&server));
    let ballast = disk.path("ballast");
    fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let mut ledger = Ledger::default();
    let full = (0..100).find_map(|n| ledger.put(&home, &server, &format!("round-{n}")));
    assert!(full.unwrap().contains("no room"));
    // Small blobs, until the database is full, too.
    let small = |n: u64| home.run(&["put", &home.file(&format!("small-{n}"), bytes("small", 30_000))]);
    let (mut acknowledged, mut n) = (0, 0);
    let stderr = loop {
        n += 1;
        assert!(n < 1000, "the disk is never full");
        match small(n) {
            put if put.code == 0 => acknowledged += 1,
            put => break put.fails(1),
        }
    };
    assert!(stderr.contains("the server has no room left: could not "), "{stderr}");
    assert!(stderr.contains(server.join("store.sqlite").to_str().unwrap()), "{stderr}");
    for _ in 0..3 {
        n += 1;
        acknowledged += u64::from(small(n).code == 0);
    }
    ledger.verify(&home);
    fs::remove_file(&ballast).unwrap();
    assert_eq!(ledger.put(&home, &server, "when-there-is-room"), None);
    let there = home.ls("/").iter().filter(|name| name.starts_with("small-")).count() as u64;
    assert_eq!(there, acknowledged, "no more and no less than was acknowledged");
    ledger.survives_a_restart(&mut home, &server);
}
