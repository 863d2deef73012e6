//! Kills at system calls of each name.

use crate::support::{figure, simulate};

#[test]
fn killed_at_any_system_call_a_server_and_a_client_lose_nothing_that_was_acknowledged() {
    let Some(report) = simulate(&["killpoints", "--short"]) else { return };
    assert!(figure(&report, "kills") > 100, "{report}");
}
