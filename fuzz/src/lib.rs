//! What is harness with bytes that nobody has thought of. Each target is a function of some bytes that panics where a
//! promise is broken; libFuzzer makes the bytes up (`fuzz_targets/`), and what it has found worth keeping is replayed by
//! `cargo test`, on any toolchain. See `fuzz/README.md`.
//!
//! Every target promises more than not to panic: what it compares, and what it counts, is told in its file.

// A target that panics has found something. Numbers of its own are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cache_contents;
mod cache_fixture;
mod cache_names;
mod client;
mod frames;
mod input;
mod machine_harness;
mod memory;
mod message_gen;
mod messages;
mod outgoing_checks;
mod pair;
pub mod seeds;
mod server;
mod split;

pub use cache_contents::cache_contents;
pub use cache_names::cache_names;
pub use client::client;
pub use frames::frames;
pub use messages::messages;
pub use pair::pair;
pub use server::server;
pub use split::split;

/// What is harness, and what it is called.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("messages", messages),
    ("frames", frames),
    ("split", split),
    ("server", server),
    ("client", client),
    ("pair", pair),
    ("cache_names", cache_names),
    ("cache_contents", cache_contents),
];
