//! Cache hits: from the claim to the open file, by one thread, without a server.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use blobferry_cache::{Cache, CacheConfig, CacheError, CachedBlob, Claim, Download};
use blobferry_protocol::{BlobId, Digest, Oid, Tid};

use super::report::{Target, Unit};
use super::{Bench, SMALL, baselines};

/// Measures the section.
pub(super) fn run(bench: &mut Bench) -> io::Result<()> {
    let what = "cache hits, from claim to open file, one thread";
    let row = bench.row("cache-hits", what, Unit::PerSecond, Some(Target::AtLeast(150_000.0)));
    bench.environment.doing("filling a cache")?;
    let dir = bench.new_dir()?;
    let cache = Cache::open(dir.path().join("cache"), CacheConfig::default()).map_err(io::Error::other)?;
    let blobs: Vec<BlobId> =
        (1..=bench.plan.blobs as u64).map(|n| BlobId { oid: Oid(n), tid: Tid(1) }).collect();
    let bytes = vec![7; SMALL];
    let paths: Vec<PathBuf> =
        blobs.iter().map(|blob| fill(&cache, *blob, &bytes)).collect::<io::Result<_>>()?;
    bench.environment.let_disk_recover((SMALL * blobs.len()) as u64)?;
    for _ in 0..bench.plan.rounds {
        bench.environment.doing("cache hits")?;
        bench.report.limit(row, baselines::opens(&paths)?);
        let begun = Instant::now();
        for blob in &blobs {
            match cache.claim(*blob).map_err(io::Error::other)? {
                Claim::Hit(cached) => drop(cached),
                Claim::Download(_) => return Err(io::Error::other("a blob is not in the cache any more")),
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        bench.report.value(row, None, blobs.len() as f64 / seconds);
    }
    Ok(())
}

fn fill(cache: &Cache, blob: BlobId, bytes: &[u8]) -> io::Result<PathBuf> {
    let cached = match cache.claim(blob).map_err(io::Error::other)? {
        Claim::Hit(cached) => cached,
        Claim::Download(download) => downloaded(download, bytes).map_err(io::Error::other)?,
    };
    Ok(cached.path().to_owned())
}

fn downloaded(mut download: Download, bytes: &[u8]) -> Result<CachedBlob, CacheError> {
    download.start(0, bytes.len() as u64)?;
    download.write(bytes)?;
    download.finish(Digest(*blake3::hash(bytes).as_bytes()))
}
