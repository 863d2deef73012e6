//! Kills at system calls of each name.

use crate::support::{figure, simulate};

#[test]
fn kills_at_system_calls_lose_nothing_acknowledged() {
    let Some(report) = simulate(&["killpoints", "--short"]) else { return };
    assert!(figure(&report, "kills") > 100, "{report}");
}
