//! The report of a check: findings with a description, and a name for scripts.

use std::path::PathBuf;

use blobferry_protocol::BlobId;

/// What a check has examined and found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The revisions of all objects.
    pub revisions: u64,
    /// The blobs whose bytes were read.
    pub blobs: u64,
    /// The bytes of those blobs.
    pub bytes: u64,
    /// All deviations, including those that were repaired.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Returns whether the store is undamaged now.
    #[must_use]
    pub fn is_well(&self) -> bool {
        !self.findings.iter().any(Finding::is_damage)
    }
}

/// One deviation from what was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// The revision concerned, if there is one.
    pub blob: Option<BlobId>,
    /// The file concerned.
    pub path: PathBuf,
    /// A description.
    pub detail: String,
    /// Whether it was repaired.
    pub mended: bool,
}

impl Finding {
    /// Returns whether it is damage that needs a repair or a backup.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !self.mended && self.kind != FindingKind::Leftover
    }
}

/// The kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FindingKind {
    /// The database contradicts itself, or cannot be read.
    Database,
    /// An index of the database does not agree with its table.
    Index,
    /// A row contradicts others.
    Row,
    /// A blob's file is missing.
    Missing,
    /// A blob's bytes are not the committed ones, or cannot be read.
    Damaged,
    /// A blob file that no revision has.
    Orphan,
    /// A saved total of the database is wrong.
    Totals,
    /// A staged file that a crash has left.
    Leftover,
}

impl FindingKind {
    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Database => "database",
            FindingKind::Index => "index",
            FindingKind::Row => "row",
            FindingKind::Missing => "missing",
            FindingKind::Damaged => "damaged",
            FindingKind::Orphan => "orphan",
            FindingKind::Totals => "totals",
            FindingKind::Leftover => "leftover",
        }
    }

    /// Returns what can be done about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            FindingKind::Database | FindingKind::Row => "restore the server's directory from a backup",
            FindingKind::Missing | FindingKind::Damaged => "restore the file from a backup",
            FindingKind::Index | FindingKind::Totals => "check with --repair: it is made anew",
            FindingKind::Orphan => "check with --repair, or the server's next start, removes it",
            FindingKind::Leftover => "harmless: the server's next start removes it",
        }
    }
}
