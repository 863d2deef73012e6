//! `check`: compare a server's directory with what was committed.

use std::io::Write;

use blobferry_store::{CheckOptions, CheckReport, Finding, check};
use serde::Serialize;

use crate::cli::CheckArgs;
use crate::failure::Failure;
use crate::format::size;
use crate::output::{Output, Render, tabbed};
use crate::progress::Bar;

/// One finding.
#[derive(Serialize)]
struct Found {
    kind: &'static str,
    /// The object, if the finding is about one.
    oid: Option<String>,
    /// The transaction.
    tid: Option<String>,
    path: String,
    detail: String,
    damage: bool,
    /// The repair that was made, or can be.
    advice: &'static str,
}

impl From<&Finding> for Found {
    fn from(finding: &Finding) -> Found {
        Found {
            kind: finding.kind.name(),
            oid: finding.blob.map(|blob| blob.oid.to_string()),
            tid: finding.blob.map(|blob| blob.tid.to_string()),
            path: finding.path.display().to_string(),
            detail: finding.detail.clone(),
            damage: finding.is_damage(),
            advice: if finding.mended { "mended" } else { finding.kind.advice() },
        }
    }
}

impl Render for Found {
    fn plain(&self) -> String {
        let Found { kind, oid, tid, path, detail, advice, .. } = self;
        let or_none = |id: &Option<String>| id.clone().unwrap_or_else(|| "-".to_owned());
        tabbed([kind, &or_none(oid), &or_none(tid), path, detail, advice])
    }
}

/// The totals of a check.
#[derive(Serialize)]
struct Checked {
    revisions: u64,
    blobs: u64,
    bytes: u64,
    damage: usize,
}

impl Render for Checked {
    fn plain(&self) -> String {
        let Checked { revisions, blobs, bytes, damage } = self;
        let found = if *damage == 0 { "all is well".to_owned() } else { format!("{damage} of it damaged") };
        format!("checked {revisions} revisions and {blobs} blobs ({}): {found}", size(*bytes))
    }
}

/// Runs `check`.
pub(super) fn run<W: Write>(args: &CheckArgs, output: &mut Output<W>) -> Result<(), Failure> {
    let bar = Bar::new("checking", 0);
    let report = check(&args.dir, CheckOptions { repair: args.repair }, &mut |progress| bar.at(progress))?;
    drop(bar);
    let CheckReport { revisions, blobs, bytes, findings } = &report;
    for finding in findings {
        output.line(&Found::from(finding))?;
    }
    let damage = findings.iter().filter(|finding| finding.is_damage()).count();
    output.line(&Checked { revisions: *revisions, blobs: *blobs, bytes: *bytes, damage })?;
    if damage == 0 {
        return Ok(());
    }
    output.flush()?;
    Err(Failure::Check { damage, dir: args.dir.clone() })
}
