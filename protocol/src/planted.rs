//! Bugs that are planted on purpose, to check that the tests find them: see `tests/README.md`.
//!
//! Only builds with the feature `__planted` contain them, and only tests use that feature. At most
//! one bug is active at a time. In every other build [`planted`] is `false`, and the compiler
//! removes the code that depends on it.

macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $bug:ident = $name:literal,)+) => {
        /// A bug that a test can plant.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $what])+ $bug,)+
        }

        impl Bug {
            /// All bugs.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)+];

            /// Returns the name of the bug on a command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)+
                }
            }

            /// Returns what the bug does.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self {
                    $(Bug::$bug => concat!($($what),+),)+
                }
            }
        }
    };
}

bugs! {
    /// A transaction is answered before its commit is on the disk.
    AcknowledgeBeforeCommit = "acknowledge-before-commit",
    /// The directory of a blob's new name is not synced before the commit.
    SkipDirectorySync = "skip-directory-sync",
    /// A blob's bytes are not synced before the commit.
    SkipBlobSync = "skip-blob-sync",
    /// A write that took less than it was given counts as whole.
    IgnoreShortWrite = "ignore-short-write",
    /// A download is not compared with its digest.
    ForgetDigestCheck = "forget-digest-check",
    /// A lock file is removed when its lock is released.
    DeleteLockFile = "delete-lock-file",
    /// A window is opened by twice the bytes that were stored.
    GiveCreditTwice = "give-credit-twice",
    /// Every eighth invalidation is not sent.
    DropInvalidation = "drop-invalidation",
    /// Every sixteenth request has the number of the one before.
    ReuseTransferId = "reuse-transfer-id",
    /// The outcome of a transaction that is being finished is given at once: not committed.
    OutcomeTooEarly = "outcome-too-early",
    /// A resumed upload goes on one byte behind the offset that the server has named.
    ResumeOneByteOff = "resume-one-byte-off",
    /// The last waiter of a download is not notified.
    LoseWaiter = "lose-waiter",
    /// A vote that fails releases the locks of another transaction, too.
    UnlockAnother = "unlock-another",
    /// A transaction that is aborted after its vote keeps its locks.
    KeepLocks = "keep-locks",
    /// A commit without an answer is sent again, and its outcome is not requested before.
    RepeatCommit = "repeat-commit",
}

#[cfg(feature = "__planted")]
mod chosen {
    use core::sync::atomic::{AtomicUsize, Ordering};

    static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Plants a bug in place of the previous one; `None` removes it.
    pub fn plant(bug: Option<super::Bug>) {
        CHOSEN.store(bug.map_or(usize::MAX, |bug| bug as usize), Ordering::SeqCst);
    }

    /// Returns true if this bug is planted.
    #[must_use]
    pub fn planted(bug: super::Bug) -> bool {
        CHOSEN.load(Ordering::SeqCst) == bug as usize
    }
}

#[cfg(feature = "__planted")]
pub use chosen::{plant, planted};

/// Returns false: this build has no planted bugs.
#[cfg(not(feature = "__planted"))]
#[must_use]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}
