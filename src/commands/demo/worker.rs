//! One of the processes of `demo`: says that it is ready, waits for the word, gets every file, and reports.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use blobferry_catalog::File as CatalogFile;
use blobferry_protocol::BlobId;
use serde::{Deserialize, Serialize};

use super::milliseconds_since;
use crate::cli::DemoWorkerArgs;
use crate::commands::{TRANSFERS, find_files, transfer_all};
use crate::failure::Failure;
use crate::memory::peak;
use crate::output::{Output, Render};
use crate::remote::Remote;

/// What a process says when it waits for the word.
pub(super) const READY: &str = "ready";

/// What came of it in one process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Files that it downloaded for everybody.
    pub(super) downloaded: u64,
    /// Files that were there already, or that another process downloaded while it waited.
    pub(super) waited: u64,
    /// From the word to the last file.
    pub(super) milliseconds: u64,
    /// Of all files together.
    pub(super) bytes: u64,
    /// The most memory that the process had resident, in bytes, where the system tells.
    pub(super) peak_memory: Option<u64>,
    /// Of each file, as it found it.
    pub(super) digests: Vec<String>,
}

impl Render for Report {
    fn plain(&self) -> String {
        // A process talks to the one that started it, in one form only.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Ready;

impl Render for Ready {
    fn plain(&self) -> String {
        READY.into()
    }
}

/// Runs one process.
pub(in crate::commands) async fn run<W: Write>(
    args: &DemoWorkerArgs,
    remote: &Remote,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let files = find_files(remote, &args.names).await?;
    output.line(&Ready)?;
    output.flush()?;
    if !start_signal().await {
        return Ok(());
    }
    let begun = Instant::now();
    let got = transfer_all(TRANSFERS, &files, |file| fetch(remote, file)).await?;
    let milliseconds = milliseconds_since(begun);
    let downloaded = got.iter().filter(|(_, downloaded)| *downloaded).count() as u64;
    let digests = got.into_iter().map(|(file, _)| digest(&file)).collect::<io::Result<Vec<String>>>();
    let digests = digests.map_err(|source| Failure::System { doing: "reading the files".into(), source })?;
    let waited = files.len() as u64 - downloaded;
    let bytes = files.iter().map(|file| file.blob.size).sum();
    output.line(&Report { downloaded, waited, milliseconds, bytes, peak_memory: peak(), digests })
}

/// Waits for a line; none comes where the process that started this one is gone.
async fn start_signal() -> bool {
    let read = tokio::task::spawn_blocking(|| io::stdin().read_line(&mut String::new())).await;
    matches!(read, Ok(Ok(length)) if length > 0)
}

/// Fetches a blob, and tells whether this process was the one to download it.
async fn fetch(remote: &Remote, found: &CatalogFile) -> Result<(File, bool), Failure> {
    let downloaded = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&downloaded);
    let blob = BlobId { oid: found.oid, tid: found.tid };
    let (_, file) = remote.fetch(blob, found.blob.size, move |_| seen.store(true, Ordering::Relaxed)).await?;
    Ok((file, downloaded.load(Ordering::Relaxed)))
}

fn digest(file: &File) -> io::Result<String> {
    Ok(blake3::Hasher::new().update_reader(file)?.finalize().to_hex().to_string())
}
