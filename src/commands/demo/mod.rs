//! `demo`: a server, and [`WORKERS`] processes that request the same files at the same moment.
//!
//! Files, sockets, processes and the cache directory are real. Everything is in a temporary
//! directory, which is removed at the end.

mod processes;
pub(super) mod worker;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_catalog::NamePath;
use serde::Serialize;

use super::put::{Published, publish};
use super::serve::Stop;
use crate::cli::{DemoArgs, Global};
use crate::failure::Failure;
use crate::format::{size, table};
use crate::local::collect;
use crate::output::{Output, Render};
use crate::remote::{Remote, RemoteError};
use crate::server::Serving;
use crate::transport::Transport;
use worker::Report;

/// The number of processes.
const WORKERS: usize = 8;

/// The size of the large generated file in MiB.
const LARGE_MIB: u64 = 64;

/// The number of small generated files.
const SMALL: u64 = 10;

/// The result of the demonstration.
#[derive(Serialize)]
struct Demo {
    /// The time to publish the files, in milliseconds.
    publishing: u64,
    /// The total size of the files, in bytes.
    bytes: u64,
    workers: Vec<Report>,
    blobs: u64,
    blobs_sent: u64,
    agree: bool,
}

impl Demo {
    /// Returns whether every process got the right bytes, and the server sent each blob once.
    fn succeeded(&self) -> bool {
        self.agree && self.blobs_sent == self.blobs
    }
}

impl Render for Demo {
    fn plain(&self) -> String {
        let head = ["process", "downloaded", "found or waited for", "milliseconds", "peak memory"];
        let head = head.map(String::from).to_vec();
        let row = |(number, report): (usize, &Report)| {
            let numbers = [number as u64 + 1, report.downloaded, report.waited, report.milliseconds];
            let memory = report.peak_memory.map_or_else(|| "-".into(), size);
            numbers.iter().map(u64::to_string).chain([memory]).collect()
        };
        let rows: Vec<Vec<String>> =
            std::iter::once(head).chain(self.workers.iter().enumerate().map(row)).collect();
        let (blobs, sent, workers) = (self.blobs, self.blobs_sent, self.workers.len());
        let agree = if self.agree { "All bytes agree" } else { "The bytes do NOT agree" };
        format!(
            "Published {blobs} files ({}) in one transaction, in {} milliseconds.\n\
             Then {workers} processes, with one cache, wanted all of them at the same moment:\n\n{}\n\
             {agree}. The server sent {sent} blobs for {} that were asked for.",
            size(self.bytes),
            self.publishing,
            table(&rows),
            blobs * workers as u64,
        )
    }
}

/// Runs `demo`.
pub(super) async fn run<W: Write>(
    args: &DemoArgs,
    global: &Global,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    // An interrupt also reaches the child processes, which end. This process continues, to clean
    // up.
    let _interrupts = Stop::new()?;
    let doing = |doing: &'static str| move |source| Failure::System { doing: doing.into(), source };
    let dir = tempfile::tempdir().map_err(doing("making a temporary directory"))?;
    let files = match args.files.is_empty() {
        true => samples(&dir.path().join("files")).map_err(doing("making files to publish"))?,
        false => args.files.clone(),
    };
    let serving = Serving::start(global.transport, &dir.path().join("server"), "127.0.0.1:0").await?;
    let demo = show(global.transport, dir.path(), &serving.address(), &files).await;
    serving.stop().await;
    let demo = demo?;
    output.line(&demo)?;
    if demo.succeeded() { Ok(()) } else { Err(Failure::Demo) }
}

async fn show(transport: Transport, dir: &Path, server: &str, files: &[PathBuf]) -> Result<Demo, Failure> {
    let sources = collect(files, &NamePath::ROOT, false)?;
    let cache = Cache::open(dir.join("publisher"), CacheConfig::default()).map_err(RemoteError::Cache)?;
    let remote = Remote::connect(transport, server, cache).await?;
    let begun = Instant::now();
    let published = publish(&remote, sources, "demo", false).await?;
    let publishing = milliseconds_since(begun);
    let before = sent(&remote).await?;
    let names: Vec<String> = published.iter().map(|file| file.name.to_string()).collect();
    let (server, cache) = (server.to_owned(), dir.join("cache"));
    // This thread runs the server, so a pool thread waits for the processes.
    let processes =
        tokio::task::spawn_blocking(move || processes::run(WORKERS, transport, &server, &cache, &names))
            .await;
    let workers = processes.unwrap_or_else(|error| Err(error.into()));
    let workers =
        workers.map_err(|source| Failure::System { doing: "running the processes".into(), source })?;
    let agree = workers.iter().all(|report| agrees(report, &published));
    let blobs_sent = sent(&remote).await?.saturating_sub(before);
    remote.close().await;
    let bytes = published.iter().map(|file| file.size).sum();
    Ok(Demo { publishing, bytes, workers, blobs: published.len() as u64, blobs_sent, agree })
}

fn milliseconds_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn agrees(report: &Report, published: &[Published]) -> bool {
    report.digests.iter().eq(published.iter().map(|file| file.digest.to_string()).collect::<Vec<_>>().iter())
}

async fn sent(remote: &Remote) -> Result<u64, Failure> {
    let counters = remote.status().await?;
    Ok(counters.into_iter().find(|(name, _)| name == "blobs_sent").map_or(0, |(_, count)| count))
}

/// Generates files: a large one, [`SMALL`] small ones and an empty one.
fn samples(dir: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir(dir)?;
    let mut files = vec![sample(dir, "large", LARGE_MIB << 20)?, sample(dir, "empty", 0)?];
    for number in 1..=SMALL {
        files.push(sample(dir, &format!("small-{number}"), number * 1000)?);
    }
    Ok(files)
}

/// Generates a file of pseudorandom bytes, which depend on its name.
fn sample(dir: &Path, name: &str, size: u64) -> io::Result<PathBuf> {
    let path = dir.join(name);
    let mut file = File::create_new(&path)?;
    let mut bytes = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
    let mut piece = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let length = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (piece, _) = piece.split_at_mut(length);
        bytes.fill(piece);
        file.write_all(piece)?;
        left -= length as u64;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_their_sizes_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name, size| std::fs::read(sample(dir.path(), name, size).unwrap()).unwrap();
        let (a, b, empty) = (read("a", (1 << 20) + 1), read("b", 1000), read("c", 0));
        assert_eq!((a.len(), b.len(), empty.len()), ((1 << 20) + 1, 1000, 0));
        assert_ne!(a[..1000], b[..]);
    }

    #[test]
    fn table_shows_downloads_and_sent_blobs() {
        let report = |downloaded, waited| Report {
            downloaded,
            waited,
            milliseconds: 7,
            bytes: 1000,
            peak_memory: Some(9 << 20),
            digests: vec![],
        };
        let workers = vec![report(2, 0), report(0, 2)];
        let demo = Demo { publishing: 5, bytes: 1000, workers, blobs: 2, blobs_sent: 2, agree: true };
        let expected = "\
Published 2 files (1000 B) in one transaction, in 5 milliseconds.
Then 2 processes, with one cache, wanted all of them at the same moment:

process  downloaded  found or waited for  milliseconds  peak memory
      1           2                    0             7      9.0 MiB
      2           0                    2             7      9.0 MiB

All bytes agree. The server sent 2 blobs for 4 that were asked for.";
        assert_eq!(demo.plain(), expected);
        assert!(demo.succeeded());
        assert!(!Demo { blobs_sent: 3, ..demo }.succeeded());
    }
}
