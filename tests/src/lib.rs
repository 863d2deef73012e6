//! Tests of blobferry as a whole.
//!
//! [`simulator`] is a cluster in one thread, simulated from one seed.
//!
//! [`powercut`], [`killpoints`] and [`ioerrors`] run real processes that use a store and a cache on
//! real file systems, and inject faults. A [`ledger`] records every promise. Afterwards it is
//! compared with what is left. All are commands of the program `simulate`: see `tests/README.md`.

mod child;
pub mod contents;
mod examine;
mod failure;
pub mod ioerrors;
pub mod killpoints;
pub mod ledger;
pub mod mount_namespace;
pub mod powercut;
pub mod simulator;
mod strace;
mod syscall_replay;
pub mod volume;
pub mod workload;

pub use child::PLANTED;
pub use failure::{Failure, Problem};
