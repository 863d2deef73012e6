//! The command as its users see it: real processes, real files, exit codes, output.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, also in what the tests share")]

mod exit_codes;
mod support;
