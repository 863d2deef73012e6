//! A child process of `demo`: reports that it is ready, waits for the start signal, gets every
//! file, and reports.

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

/// The line that a process prints when it waits for the start signal.
pub(super) const READY: &str = "ready";

/// The result of one process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The files that this process downloaded.
    pub(super) downloaded: u64,
    /// The files that were cached already, or that another process downloaded while this one
    /// waited.
    pub(super) waited: u64,
    /// The time from the start signal to the last file.
    pub(super) milliseconds: u64,
    /// The total size of the files.
    pub(super) bytes: u64,
    /// The peak resident memory in bytes; `None` if the system does not report it.
    pub(super) peak_memory: Option<u64>,
    /// The digest of each file, computed from its bytes.
    pub(super) digests: Vec<String>,
}

impl Render for Report {
    fn plain(&self) -> String {
        // The parent process reads JSON in any case.
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

/// Waits for the start signal, a line. Returns `false` if the parent process has ended.
async fn start_signal() -> bool {
    let read = tokio::task::spawn_blocking(|| io::stdin().read_line(&mut String::new())).await;
    matches!(read, Ok(Ok(length)) if length > 0)
}

/// Fetches a blob, and returns whether this process downloaded it.
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
