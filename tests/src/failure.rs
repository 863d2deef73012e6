//! What is found to be wrong, and how a run that found it ends.

use std::fmt::Display;
use std::path::PathBuf;

/// One thing that is not as it was promised, or that kept us from finding out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(pub String);

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// This machine, or this user, can not do it at all.
    #[error("skipped: {0}")]
    Unable(String),
    /// Something is wrong.
    #[error("{what}\n  seen again with: {replay}\n  kept for you: {}", kept.display())]
    Found {
        /// What.
        what: Problem,
        /// The command that does the same once more.
        replay: String,
        /// A copy of the directory as it was found.
        kept: PathBuf,
    },
}

/// Says what was being done when something failed.
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

/// What must hold, or else is told.
macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err($crate::failure::Problem(format!($($what)+)));
        }
    };
}
pub(crate) use ensure;
