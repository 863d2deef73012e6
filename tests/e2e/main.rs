//! The whole: the command as its users see it (real processes, real files, exit codes, output), and every client
//! against every server, over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test fails, also in what the tests share"
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
