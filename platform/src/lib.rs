//! What blobferry asks of the operating system: threads, clocks, files and blob directories. A simulator can take its place.
//!
//! This crate is internal to blobferry: it makes no promise about compatibility between versions.

pub mod aligned_buf;
pub mod blobdir;
pub mod bounded_map;
pub mod hash;
pub mod os;
pub mod pool;
pub mod progress;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
pub mod spin;
pub mod sync;
