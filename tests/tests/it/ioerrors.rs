//! System calls of each name that fail, and short writes.

use crate::support::{figure, simulate};

#[test]
fn whatever_system_call_fails_nothing_that_was_acknowledged_is_lost_and_nothing_refused_is_there() {
    let Some(report) = simulate(&["ioerrors", "--short"]) else { return };
    assert!(figure(&report, "failed") > 100 && figure(&report, "refused") > 0, "{report}");
}
