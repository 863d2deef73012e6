//! The whole: the command as its users see it (real processes, real files, exit codes, output), and every client
//! against every server, over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test fails, also in what the tests share"
)]

mod at_once;
mod bench;
mod cache;
mod ceilings;
mod check;
mod conformance;
mod crashes;
mod disk_faults;
mod exit_codes;
mod hostile;
mod idle;
mod names;
mod readme;
mod road;
mod serving;
mod strace;
mod support;
mod writers;
