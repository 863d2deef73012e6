//! Power cuts on each file system.

use crate::support::{figure, simulate};

fn cut(kind: &str, cycles: &str) {
    if let Some(report) = simulate(&["powercut", "--fs", kind, "--cycles", cycles]) {
        assert!(figure(&report, "commits") > 0, "{report}");
    }
}

#[test]
fn after_power_cuts_on_ext4_nothing_that_was_acknowledged_is_lost_or_torn() {
    cut("ext4", "56");
}

#[test]
fn after_power_cuts_on_xfs_nothing_that_was_acknowledged_is_lost_or_torn() {
    cut("xfs", "24");
}
