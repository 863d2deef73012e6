//! Examines a cache after a crash: it opens, serves no torn file, and lets missing blobs be
//! downloaded.

use std::fs;
use std::path::Path;

use blobferry_cache::{Cache, CacheConfig, CachedBlob, Claim};
use blobferry_protocol::{BlobId, Oid};

use crate::failure::{Context, Problem, ensure};
use crate::ledger::Ledger;
use crate::workload::{cache, fetch, read_blob};

/// Opens the cache in a directory, and compares it with the ledger. Partial blobs are downloaded to
/// their end.
pub(crate) fn examine_cache(dir: &Path, ledger: &Ledger) -> Result<(), Problem> {
    let dir = cache(dir);
    let cache = Cache::open(&dir, CacheConfig::default()).context("the cache cannot be opened")?;
    for entry in cache.blobs() {
        let blob = entry.context("the cache cannot be listed")?.blob;
        match cache.claim(blob).context(format!("{blob} cannot be claimed"))? {
            Claim::Hit(cached) => compare(&cached, ledger)?,
            // The cache has found a torn blob by itself.
            Claim::Download(download) => {
                ensure!(!ledger.cached().contains(&blob), "{blob} was in the cache, and is torn");
                drop(download);
            }
        }
    }
    for entry in cache.packed_blobs() {
        let blob = entry.context("the segments cannot be listed")?.blob;
        // A torn record counts as missing.
        let (Some(found), Some(expected)) = (cache.packed(blob), ledger.blob(blob)) else { continue };
        ensure!(found == expected, "{blob} is torn in a segment");
    }
    for blob in ledger.cached() {
        let claim = cache.claim(*blob).context(format!("{blob} cannot be claimed"))?;
        ensure!(matches!(claim, Claim::Hit(_)), "{blob} was in the cache, and is not any more");
    }
    for blob in parts(&dir)? {
        let Some(bytes) = ledger.blob(blob) else { continue };
        match cache.claim(blob).context(format!("{blob} cannot be claimed"))? {
            Claim::Hit(cached) => compare(&cached, ledger)?,
            Claim::Download(download) => {
                let cached = fetch(download, &bytes).context(format!("{blob} cannot be downloaded"))?;
                compare(&cached, ledger)?;
            }
        }
    }
    let usage = cache.usage().context("the usage of the cache is not known")?;
    ensure!(usage.in_use == 0, "no process uses the cache, but {} bytes are in use", usage.in_use);
    let tmp = fs::read_dir(dir.join("tmp")).context("could not list the cache's tmp")?.flatten();
    let owners = tmp.filter(|entry| entry.file_name().to_string_lossy().starts_with("blobferry-")).count();
    ensure!(owners == 1, "{owners} processes have unfinished files in the cache, and only one is alive");
    Ok(())
}

fn compare(cached: &CachedBlob, ledger: &Ledger) -> Result<(), Problem> {
    let blob = cached.blob();
    let expected = ledger.blob(blob).context(format!("{blob} is in the cache, and was never committed"))?;
    let found = read_blob(cached).context(format!("{blob} cannot be read"))?;
    ensure!(found == expected, "{blob} is torn in the cache");
    Ok(())
}

/// Returns the blobs of which there are partial downloads.
fn parts(cache: &Path) -> Result<Vec<BlobId>, Problem> {
    let Ok(entries) = fs::read_dir(cache.join("tmp/partial")) else { return Ok(Vec::new()) };
    let mut parts = Vec::new();
    for entry in entries {
        let name = entry.context("could not list the parts of blobs")?.file_name();
        let name = name.to_string_lossy();
        let ids = name.strip_suffix(".part").and_then(|ids| ids.split_once('.'));
        let blob =
            ids.and_then(|(oid, tid)| Some(BlobId { oid: Oid(oid.parse().ok()?), tid: tid.parse().ok()? }));
        parts.push(blob.context(format!("{name} is no part of a blob"))?);
    }
    Ok(parts)
}
