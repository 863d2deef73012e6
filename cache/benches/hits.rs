//! Blobs that are in the cache, from the claim to the open file: how many a second, and allocations
//! for each.

use std::hint::black_box;

use allocation_counter::measure;
use blobferry_cache::{Cache, CacheConfig, CachedBlob, Claim};
use blobferry_protocol::{BlobId, Digest, Oid, Tid};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BLOBS: u64 = 1000;
const BYTES: &[u8] = &[7; 10 << 10];

fn blob(number: u64) -> BlobId {
    BlobId { oid: Oid(1 + number % BLOBS), tid: Tid(1) }
}

fn fill(cache: &Cache) -> Result<()> {
    let digest = Digest(*blake3::hash(BYTES).as_bytes());
    for number in 0..BLOBS {
        if let Claim::Download(mut download) = cache.claim(blob(number))? {
            download.start(0, BYTES.len() as u64)?;
            download.write(BYTES)?;
            download.finish(digest)?;
        }
    }
    Ok(())
}

fn hit(cache: &Cache, number: u64) -> Option<CachedBlob> {
    match cache.claim(blob(number)) {
        Ok(Claim::Hit(cached)) => Some(cached),
        _ => None,
    }
}

fn hits(criterion: &mut Criterion) {
    let run = |criterion: &mut Criterion| -> Result<()> {
        let home = tempfile::tempdir()?;
        let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
        fill(&cache)?;
        assert!((0..BLOBS).all(|number| hit(&cache, number).is_some()), "all of them are there");
        let allocations = measure(|| (0..BLOBS).for_each(|number| drop(hit(&cache, number)))).count_total;
        println!("a hit: {} allocations", allocations as f64 / BLOBS as f64);
        let mut group = criterion.benchmark_group("hits");
        group.throughput(Throughput::Elements(1));
        let mut number = 0;
        group.bench_function("claim to open file", |bencher| {
            bencher.iter(|| {
                number += 1;
                black_box(hit(&cache, number))
            });
        });
        group.finish();
        Ok(())
    };
    if let Err(error) = run(criterion) {
        eprintln!("cannot measure the cache: {error}");
        std::process::exit(1);
    }
}

criterion_group!(benches, hits);
criterion_main!(benches);
