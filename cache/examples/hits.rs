//! How many claims of blobs that are there, and of blobs that are not, one thread makes in a second.
//!
//! `cargo run --release -p blobferry-cache --example hits -- [claims]`; under `strace -c -f`, which system calls those are.

use std::time::{Duration, Instant};

use blobferry_cache::{Cache, CacheConfig, CacheError, Claim};
use blobferry_protocol::{BlobId, Digest, Oid, Tid};

const BLOBS: u64 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let claims: u64 = std::env::args().nth(1).map_or(Ok(200_000), |claims| claims.parse())?;
    let dir = tempfile::tempdir_in("/var/tmp")?;
    let cache = Cache::open(dir.path().join("cache"), CacheConfig::default())?;
    for n in 0..BLOBS {
        put(&cache, blob(n))?;
    }
    let hits = per_second(claims, |n| match cache.claim(blob(n % BLOBS))? {
        Claim::Hit(cached) if cached.size() == 10 << 10 => Ok(()),
        claim => Err(format!("no hit: {claim:?}").into()),
    })?;
    println!("hits: {hits:.0} a second");
    let misses = per_second(claims / 10, |n| match cache.claim(blob(BLOBS + n % BLOBS))? {
        Claim::Download(_) => Ok(()),
        claim => Err(format!("no miss: {claim:?}").into()),
    })?;
    println!("misses: {misses:.0} a second");
    Ok(())
}

fn blob(n: u64) -> BlobId {
    BlobId { oid: Oid(n * 7), tid: Tid(n) }
}

fn put(cache: &Cache, blob: BlobId) -> Result<(), CacheError> {
    let bytes = vec![1; 10 << 10];
    if let Claim::Download(mut download) = cache.claim(blob)? {
        download.start(0, bytes.len() as u64)?;
        download.write(&bytes)?;
        download.finish(Digest(*blake3::hash(&bytes).as_bytes()))?;
    }
    Ok(())
}

/// The best of five rounds, so that little depends on who else is at work.
fn per_second(
    times: u64,
    act: impl Fn(u64) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        for n in 0..times {
            act(n)?;
        }
        best = best.min(start.elapsed());
    }
    Ok(times as f64 / best.as_secs_f64())
}
