//! The problems that tests find, and how a run that found one ends.

use std::fmt::Display;
use std::path::PathBuf;

/// A broken promise, or a reason why a test could not continue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(pub String);

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// This machine or user cannot run the test.
    #[error("skipped: {0}")]
    Unable(String),
    /// A problem was found.
    #[error("{what}\n  reproduce it with: {replay}\n  kept in: {}", kept.display())]
    Found {
        /// The problem.
        what: Problem,
        /// The command that reproduces it.
        replay: String,
        /// A copy of the directory as it was found.
        kept: PathBuf,
    },
}

/// Adds to an error what was being done.
pub(crate) trait Context<T> {
    fn context(self, doing: impl Display) -> Result<T, Problem>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl Display) -> Result<T, Problem> {
        self.map_err(|error| Problem(format!("{doing}: {error}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Result<T, Problem> {
        self.ok_or_else(|| Problem(doing.to_string()))
    }
}

/// Returns a problem unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err($crate::failure::Problem(format!($($what)+)));
        }
    };
}
pub(crate) use ensure;
