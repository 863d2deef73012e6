//! What is found to be wrong, and how a run that found it ends.

use std::fmt::Display;
use std::path::PathBuf;

/// One thing that is not as it was promised, or that kept us from finding out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(pub String);

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// This machine, or this user, can not do it at all.
    #[error("skipped: {0}")]
    Unable(String),
    /// Something is wrong.
    #[error("{what}\n  seen again with: {replay}\n  kept for you: {}", kept.display())]
    Wrong {
        /// What.
        what: Wrong,
        /// The command that does the same once more.
        replay: String,
        /// A copy of the directory as it was found.
        kept: PathBuf,
    },
}

/// Says what was being done when something failed.
pub(crate) trait OrWrong<T> {
    fn or_wrong(self, doing: impl Display) -> Result<T, Wrong>;
}

impl<T, E: Display> OrWrong<T> for Result<T, E> {
    fn or_wrong(self, doing: impl Display) -> Result<T, Wrong> {
        self.map_err(|error| Wrong(format!("{doing}: {error}")))
    }
}

impl<T> OrWrong<T> for Option<T> {
    fn or_wrong(self, doing: impl Display) -> Result<T, Wrong> {
        self.ok_or_else(|| Wrong(doing.to_string()))
    }
}

/// What must hold, or else is told.
macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err($crate::wrong::Wrong(format!($($what)+)));
        }
    };
}
pub(crate) use ensure;
