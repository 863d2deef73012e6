//! End-to-end tests: the command as its users see it, and every client against every server.
//!
//! The tests run real processes, files and sockets, and check exit codes and output.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test fails, also in shared helpers"
)]

mod bench;
mod cache;
mod check;
mod conformance;
mod cost_budgets;
mod crashes;
mod disk_faults;
mod exit_codes;
mod hostile;
mod idle;
mod names;
mod readme;
mod serving;
mod single_download;
mod strace;
mod support;
mod throttled_proxy;
mod writers;
