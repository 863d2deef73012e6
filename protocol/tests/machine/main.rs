//! Tests of both state machines: the wire format, and conversations between a client and a server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod attaching;
mod client_phases;
mod conversation;
mod corpus;
mod embedding;
mod frames;
mod golden;
mod golden_table;
mod hostile;
mod liveness;
mod receiving;
mod sending;
mod stalling;
mod states;
mod stream;
mod support;
mod transactions;
