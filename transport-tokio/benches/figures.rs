//! The figures of one run on one machine: blobferry beside the least that any program could do.
//!
//! `cargo bench -p blobferry-transport-tokio` measures, interleaved and as medians: a blob of 1 GiB (`BLOB_MIB` sets
//! another size) stored and loaded, beside a bare loop that copies the same bytes over a loopback socket into a file;
//! and commits of 10 KiB blobs by 1 and by 16 writers, beside the disk's own sync.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_store::{EmbeddedStore, StoreConfig};
use blobferry_transport_tokio::{BlobSource, Client, ClientConfig, Server, ServerConfig};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const RUNS: usize = 3;
const SMALL: usize = 10 << 10;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<()> {
    let mib: u64 = std::env::var("BLOB_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(1024);
    let home = tempfile::tempdir_in(std::env::var("BENCH_DIR").unwrap_or_else(|_| ".".into()))?;
    let source = home.path().join("source");
    fill(&source, mib)?;

    let mut bare = Vec::new();
    let mut bare_synced = Vec::new();
    let (mut put, mut get) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let dir = home.path().join(format!("run{run}"));
        std::fs::create_dir(&dir)?;
        bare.push(bare_copy(&source, &dir.join("bare"), mib << 20, false)?);
        rest(mib);
        bare_synced.push(bare_copy(&source, &dir.join("bare-synced"), mib << 20, true)?);
        rest(mib);
        let (stored, loaded) = large(&source, &dir, mib)?;
        put.push(stored);
        get.push(loaded);
        std::fs::remove_dir_all(&dir)?;
        rest(mib);
    }
    let rate = |times: Vec<f64>| mib as f64 * 1.048_576 / median(times);
    let (bare, bare_synced, put, get) = (rate(bare), rate(bare_synced), rate(put), rate(get));
    println!("{mib} MiB, MB/s (median of {RUNS})");
    println!("  bare loop, socket to preallocated file   {bare:7.0}");
    println!("  blobferry load, verified                 {get:7.0}   {:.2} of the bare loop", get / bare);
    println!("  bare loop, synced                        {bare_synced:7.0}");
    println!(
        "  blobferry store, durable                 {put:7.0}   {:.2} of the synced loop",
        put / bare_synced
    );

    let sync = sync_time(home.path())?;
    println!("10 KiB blobs, commits/s (one disk sync takes {:.2} ms)", sync * 1e3);
    for writers in [1, 16] {
        let (rate, syncs) = small(home.path(), writers)?;
        println!(
            "  {writers:2} writers                               {rate:7.0}   {syncs:.2} batches a commit"
        );
    }
    Ok(())
}

/// Disks have bursts: what was written is let sink in, and a pause as long as that is large lets the disk recover.
fn rest(mib: u64) {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_millis(1000 + 12 * mib));
}

/// Reads the files of a directory, so that what is measured is not the disk that they would be read from.
fn warm(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::io::copy(&mut File::open(entry.path())?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

fn fill(path: &Path, mib: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0; 1 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..mib {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

fn bare_copy(source: &Path, target: &Path, size: u64, sync: bool) -> Result<f64> {
    warm(source.parent().ok_or("no home")?)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut from = File::open(source)?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut to = listener.accept()?.0;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..n])?;
        }
    });
    let start = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    let mut file = File::create(target)?;
    fs_allocate(&file, size)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n])?;
    }
    if sync {
        file.sync_data()?;
    }
    let time = start.elapsed().as_secs_f64();
    sender.join().map_err(|_| "the sender panicked")??;
    std::fs::remove_file(target)?;
    Ok(time)
}

fn fs_allocate(file: &File, size: u64) -> Result<()> {
    let flags = rustix::fs::FallocateFlags::empty();
    Ok(rustix::fs::fallocate(file, flags, 0, size)?)
}

async fn open(dir: &Path) -> Result<(Server, Client)> {
    let store = Arc::new(EmbeddedStore::open(dir.join("server"), StoreConfig::default())?);
    let server = Server::bind("127.0.0.1:0", store, ServerConfig::default()).await?;
    let cache = Cache::open(dir.join("cache"), CacheConfig::default())?;
    let client = Client::connect(server.local_addr(), cache, ClientConfig::default()).await?;
    Ok((server, client))
}

#[tokio::main]
async fn large(source: &Path, dir: &Path, mib: u64) -> Result<(f64, f64)> {
    let (server, client) = open(dir).await?;
    let oid = client.new_oids(1).await?[0];
    warm(source.parent().ok_or("no home")?)?;
    let start = Instant::now();
    let mut transaction = client.begin(TxnMeta::default())?;
    transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::streamed(source)).await?;
    let tid = transaction.commit().await?;
    let stored = start.elapsed().as_secs_f64();
    drop(transaction);
    tokio::task::spawn_blocking(move || rest(mib)).await?;
    warm(&dir.join("server/blobs").join(BlobId { oid, tid }.bucket().to_string()))?;
    let start = Instant::now();
    client.load_blob(BlobId { oid, tid }).await?;
    let loaded = start.elapsed().as_secs_f64();
    client.close().await;
    server.stop().await;
    Ok((stored, loaded))
}

fn sync_time(dir: &Path) -> Result<f64> {
    let mut file = File::create(dir.join("sync"))?;
    let times = (0..200).map(|_| {
        let start = Instant::now();
        file.write_all(&[0; SMALL])?;
        file.sync_data()?;
        Ok(start.elapsed().as_secs_f64())
    });
    Ok(median(times.collect::<Result<_>>()?))
}

/// Commits for some seconds: how many a second, and how many batches the store made for each.
#[tokio::main]
async fn small(home: &Path, writers: usize) -> Result<(f64, f64)> {
    const TIME: Duration = Duration::from_secs(4);
    let dir = home.join(format!("writers{writers}"));
    let (server, client) = open(&dir).await?;
    let oids = client.new_oids(writers as u32).await?;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for oid in oids {
        let client = client.clone();
        tasks.spawn(async move {
            commit_for(&client, oid, start + TIME).await.map_err(|error| error.to_string())
        });
    }
    let mut commits = 0;
    while let Some(done) = tasks.join_next().await {
        commits += done??;
    }
    let time = start.elapsed().as_secs_f64();
    let status = client.status().await?;
    let of = |name: &str| status.iter().find(|(key, _)| key == name).map_or(0, |(_, value)| *value);
    let batches = of("batches") as f64 / of("commits") as f64;
    client.close().await;
    server.stop().await;
    Ok((f64::from(commits) / time, batches))
}

async fn commit_for(client: &Client, oid: Oid, until: Instant) -> Result<u32> {
    let bytes: &'static [u8] = vec![7; SMALL].leak();
    let (mut base, mut commits) = (Tid::ZERO, 0);
    while Instant::now() < until {
        let mut transaction = client.begin(TxnMeta::default())?;
        let stored = transaction.store_blob(oid, base, Vec::new(), BlobSource::bytes(bytes));
        stored.await?;
        base = transaction.commit().await?;
        commits += 1;
    }
    Ok(commits)
}
