//! Transactions, the same in every store: their phases, locks, order, commits and announcements.

pub(crate) mod abort_reasons;
pub(crate) mod coordinator;
pub(crate) mod group_commit;
pub(crate) mod locks;
pub(crate) mod publisher;
pub(crate) mod store_impl;
pub(crate) mod table;
pub(crate) mod write_set;
