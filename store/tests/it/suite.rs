//! The promises of every store.

mod conflicts;
mod outcomes;
mod packing;
mod reading;
mod transactions;

/// Makes two tests of every promise: one for the store in memory and one for SQLite's.
macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $promise() { super::$promise(crate::support::memory); })*
        }
        mod sqlite {
            $(#[test] fn $promise() { super::$promise(crate::support::sqlite); })*
        }
    };
}
pub(crate) use promises;
