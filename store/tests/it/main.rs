//! What every store promises, tested on the store in memory and on SQLite's alike; and what only a
//! store on a disk can promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod any_store;
mod check;
mod crash;
mod differential;
mod memory_use;
mod shared_files;
mod sqlite;
mod suite;
mod support;
