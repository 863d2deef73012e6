//! What a check finds, in words for people and names for scripts.

use std::path::PathBuf;

use blobferry_protocol::BlobId;

/// What a check has looked at, and found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Revisions of objects there are.
    pub revisions: u64,
    /// Blobs whose bytes were looked at.
    pub blobs: u64,
    /// How many bytes that were.
    pub bytes: u64,
    /// All that is not as it should be, or was not before it was mended.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Is everything as it should be now?
    #[must_use]
    pub fn is_well(&self) -> bool {
        !self.findings.iter().any(Finding::is_damage)
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The revision that it is about, if it is about one.
    pub blob: Option<BlobId>,
    /// The file that it is about.
    pub path: PathBuf,
    /// What is wrong, exactly.
    pub detail: String,
    /// Whether it was mended.
    pub mended: bool,
}

impl Finding {
    /// Is it something that needs a person, or a repair?
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !self.mended && self.kind != FindingKind::Leftover
    }
}

/// Kinds of things that can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// The database contradicts itself, or can not be read.
    Database,
    /// An index of the database does not agree with what it is an index of.
    Index,
    /// A row contradicts others.
    Row,
    /// A blob's file is not there.
    Missing,
    /// A blob's bytes are not those that were committed, or can not be read.
    Damaged,
    /// A blob that no revision speaks of.
    Orphan,
    /// A number that the database keeps of itself is wrong.
    Totals,
    /// What a crash has left of something that never happened.
    Leftover,
}

impl FindingKind {
    /// Its name.
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

    /// What can be done about it.
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
