//! The disk space that a cache may use: the usage file, reservations and eviction.

pub(crate) mod account;
pub(crate) mod evict;
pub(crate) mod reservation;
pub(crate) mod scratch;
