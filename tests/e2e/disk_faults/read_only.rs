//! A file system that the kernel makes read-only under a server because it found damage.

use std::fs;

use super::{Disk, Ledger, run, serve_quietly};
use crate::support::Home;

/// Returns the path of the file that makes the kernel treat the file system as damaged.
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
    let mut home = Home::with(|_| serve_quietly(&server));
    let mut ledger = Ledger::default();
    assert_eq!(ledger.put(&home, &server, "before"), None);
    if trigger(&disk).is_none_or(|trigger| fs::write(trigger, "1").is_err()) {
        println!("skipped: the kernel cannot be made to report damage here");
        return;
    }
    for name in ["one", "two"] {
        let stderr = ledger.put(&home, &server, name).unwrap();
        assert!(
            stderr.contains("the server takes no writes") || stderr.contains("was started again"),
            "{stderr}"
        );
    }
    ledger.verify(&home);
    home.server.end(rustix::process::Signal::KILL);
    assert!(run("umount", &[disk.path("").to_str().unwrap()]));
    assert!(disk.mount_again());
    home.server = serve_quietly(&server);
    ledger.survives_a_restart(&mut home, &server);
}
