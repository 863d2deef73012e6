//! Bugs that are planted on purpose, to see that the simulator and its siblings catch them: see `tests/README.md`.
//!
//! They are only in builds with the feature `__planted`, which nothing but tests turns on, and even there only the one that was chosen. In every other
//! build [`planted`] is `false`, and the compiler removes what depends on it.

macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $bug:ident = $name:literal,)+) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $what])+ $bug,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)+];

            /// What it is called on a command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)+
                }
            }

            /// What goes wrong with it.
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
    /// An upload that is resumed goes on one byte behind the one that the server has named.
    ResumeOneByteOff = "resume-one-byte-off",
    /// Of those who wait for a download the last one is not told that it is there.
    LoseWaiter = "lose-waiter",
    /// A vote that fails releases the locks of another transaction, too.
    UnlockAnother = "unlock-another",
    /// A transaction that is given up behind its vote keeps its locks.
    KeepLocks = "keep-locks",
    /// A commit that was not answered is sent again without asking what became of it.
    RepeatCommit = "repeat-commit",
}

#[cfg(feature = "__planted")]
mod chosen {
    use core::sync::atomic::{AtomicUsize, Ordering};

    static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Plants a bug instead of the one before, or none.
    pub fn plant(bug: Option<super::Bug>) {
        CHOSEN.store(bug.map_or(usize::MAX, |bug| bug as usize), Ordering::SeqCst);
    }

    /// Is this the bug that was planted?
    #[must_use]
    pub fn planted(bug: super::Bug) -> bool {
        CHOSEN.load(Ordering::SeqCst) == bug as usize
    }
}

#[cfg(feature = "__planted")]
pub use chosen::{plant, planted};

/// Is this the bug that was planted? Not in this build.
#[cfg(not(feature = "__planted"))]
#[must_use]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}
