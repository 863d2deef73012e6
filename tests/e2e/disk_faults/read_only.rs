//! A file system that becomes read-only under a server, as one does that finds itself damaged.

use std::fs;

use super::super::support::Home;
use super::{Disk, Ledger, quiet, run};

/// What makes the kernel believe that a file system is damaged.
fn trigger(disk: &Disk) -> Option<String> {
    let source =
        std::process::Command::new("findmnt").args(["-no", "SOURCE"]).arg(disk.path("")).output().ok()?;
    let device = String::from_utf8(source.stdout).ok()?.trim().strip_prefix("/dev/")?.to_owned();
    Some(format!("/sys/fs/ext4/{device}/trigger_fs_error"))
}

#[test]
fn read_only_file_system_refuses_writes_and_serves_reads() {
    let Some(disk) = Disk::in_a_file("ext4", 32) else { return };
    let server = disk.path("server");
    let mut home = Home::with(|_| quiet(&server));
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    if trigger(&disk).is_none_or(|trigger| fs::write(trigger, "1").is_err()) {
        println!("skipped: a file system can not be told here that it is damaged");
        return;
    }
    for name in ["one", "two"] {
        let said = ledger.put(&home, &server, name).unwrap();
        assert!(said.contains("the server takes no writes") || said.contains("was started again"), "{said}");
    }
    ledger.is_right(&home);
    home.server.end(rustix::process::Signal::KILL);
    assert!(run("umount", &[disk.path("").to_str().unwrap()]));
    assert!(disk.mount_again());
    home.server = quiet(&server);
    ledger.survives_a_restart(&mut home, &server);
}
