//! The disk space that a cache may use: one account of it, reservations, and eviction.

pub(crate) mod account;
pub(crate) mod evict;
pub(crate) mod reservation;
pub(crate) mod scratch;
