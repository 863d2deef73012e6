//! The whole: the command as its users see it (real processes, real files, exit codes, output), and the client library
//! against a server, over real sockets.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, also in what the tests share")]

mod at_once;
mod crashes;
mod exit_codes;
mod hostile;
mod library;
mod names;
mod readme;
mod road;
mod serving;
mod support;
mod writers;
