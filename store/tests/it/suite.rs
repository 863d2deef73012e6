//! What every store promises.

mod conflicts;
mod outcomes;
mod packing;
mod reading;
mod transactions;

/// Makes two tests of every promise: one for the model, one for the embedded store.
macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        mod model {
            $(#[test] fn $promise() { super::$promise(crate::support::model); })*
        }
        mod embedded {
            $(#[test] fn $promise() { super::$promise(crate::support::embedded); })*
        }
    };
}
pub(crate) use promises;
