//! Power cuts on each file system.

use crate::support::{figure, simulate};

fn cut(kind: &str, cycles: &str) {
    if let Some(report) = simulate(&["powercut", "--fs", kind, "--cycles", cycles]) {
        assert!(figure(&report, "commits") > 0, "{report}");
    }
}

#[test]
fn power_cuts_on_ext4_lose_and_tear_nothing_acknowledged() {
    cut("ext4", "56");
}

#[test]
fn power_cuts_on_xfs_lose_and_tear_nothing_acknowledged() {
    cut("xfs", "24");
}
