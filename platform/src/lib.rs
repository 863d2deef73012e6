//! What blobferry uses of the operating system: threads, clocks, files and blob directories.
//!
//! A simulator can replace all of it.
//!
//! This crate is internal to blobferry and outside semantic versioning: any release may change it.
//! [`blobferry-cache`](https://docs.rs/blobferry-cache) exports what is meant for users.

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
