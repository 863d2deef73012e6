//! System calls of each name that fail, and short writes.

use crate::support::{figure, simulate};

#[test]
fn failed_system_calls_lose_no_commit_and_keep_refusals() {
    let Some(report) = simulate(&["ioerrors", "--short"]) else { return };
    assert!(figure(&report, "failed") > 100 && figure(&report, "refused") > 0, "{report}");
}
