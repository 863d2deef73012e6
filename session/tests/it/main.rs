//! Tests of a server without a socket: its answers, and the cost of each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod cost_budgets;
mod handlers;
mod stepped;
#[allow(dead_code, reason = "the store's tests use all of it")]
#[path = "../../../store/tests/it/support.rs"]
mod support;
