//! How blobferry is tried as a whole, beyond what tests of single parts can show.
//!
//! [`simulator`] is a cluster in one thread, out of one seed.
//!
//! [`powercut`], [`killpoints`] and [`ioerrors`] have real processes use a store and a cache, on real file systems, while
//! something happens to them. Everything that these are promised is noted in a [`ledger`]; afterwards all of it is
//! compared with what is there. They are commands of the program `simulate`: see `tests/README.md`.

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
