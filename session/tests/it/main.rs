//! A server without a socket: what it answers, and what each answer costs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod ceilings;
mod sessions;
mod still;
#[allow(dead_code, reason = "the store's tests use all of it")]
#[path = "../../../store/tests/it/support.rs"]
mod support;
