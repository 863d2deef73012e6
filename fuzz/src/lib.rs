//! Fuzz targets for blobferry.
//!
//! A target is a function of some bytes that panics if a promise is broken. libFuzzer generates the
//! bytes (`fuzz_targets/`). `cargo test` replays the corpora and regressions on any toolchain. See
//! `fuzz/README.md`.
//!
//! Every target promises more than not to panic: the first lines of its file list what it checks.

// A panic is how a target reports a finding. The casts are of small numbers.
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

/// A target's name and function.
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
