//! What every store promises, tried on the model and on the embedded store alike; and what only a store on a disk
//! can promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod check;
mod crash;
mod differential;
mod embedded;
mod memory;
mod shared_files;
mod suite;
mod support;
