//! How fast small blobs are loaded that are not in the cache, beside bare round trips with answers as long.
//!
//! `cargo run --release -p blobferry-transport-tokio --example loads` has the server in a process of its own, and tells what
//! each side takes of the processors.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_store::{EmbeddedStore, StoreConfig};
use blobferry_transport_tokio::{BlobSource, Client, ClientConfig, Server, ServerConfig};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SIZE: usize = 10 << 10;
const BLOBS: u64 = 20_000;
const ROUNDS: u64 = 5;

fn main() -> Result<()> {
    if std::env::args().any(|arg| arg == "serve") {
        return tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve());
    }
    let mut server = Command::new(std::env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    let runtime = match std::env::var("THREADS") {
        Ok(_) => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?,
        Err(_) => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
    };
    let done = runtime.block_on(measure(line.trim(), server.id()));
    server.kill()?;
    server.wait()?;
    done
}

async fn serve() -> Result<()> {
    let home = tempfile::tempdir_in("/var/tmp")?;
    let store = EmbeddedStore::open(home.path(), StoreConfig::default())?;
    let server = Server::bind("127.0.0.1:0", Arc::new(store), ServerConfig::default()).await?;
    println!("{} {}", server.local_addr(), bare()?);
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

/// Answers 16 bytes with as many as a blob has.
fn bare() -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut stream = stream;
                stream.set_nodelay(true)?;
                let (mut ask, answer) = ([0; 16], vec![1; SIZE]);
                loop {
                    stream.read_exact(&mut ask)?;
                    stream.write_all(&answer)?;
                }
            });
        }
    });
    Ok(address)
}

async fn measure(addresses: &str, server: u32) -> Result<()> {
    let (address, bare) = addresses.split_once(' ').ok_or("two addresses")?;
    let home = tempfile::tempdir_in("/var/tmp")?;
    let open = |name: String| Cache::open(home.path().join(name), CacheConfig::default());
    let writer = Client::connect(address, open("writer".into())?, ClientConfig::default()).await?;
    let mut blobs = Vec::new();
    for chunk in 0..BLOBS / 1000 {
        let mut transaction = writer.begin(TxnMeta::default())?;
        let oids: Vec<Oid> = writer.new_oids(1000).await?;
        for (n, oid) in oids.iter().enumerate() {
            let bytes = vec![(chunk as usize + n) as u8; SIZE];
            transaction.store_blob(*oid, Tid::ZERO, Vec::new(), BlobSource::bytes(bytes)).await?;
        }
        let tid = transaction.commit().await?;
        blobs.extend(oids.into_iter().map(|oid| BlobId { oid, tid }));
    }
    let mut bare = TcpStream::connect(bare)?;
    bare.set_nodelay(true)?;
    let blobs = Arc::new(blobs);
    for round in 0..ROUNDS {
        let client = Client::connect(address, open(format!("{round}"))?, ClientConfig::default()).await?;
        // All lock files are there afterwards.
        for blob in &blobs[..2000] {
            client.load_bytes(*blob).await?;
        }
        let trips = timed(|| (0..2000).try_for_each(|_| trip(&mut bare)))?;
        let start = (Instant::now(), cpu(std::process::id())?, cpu(server)?);
        for blob in &blobs[2000..4000] {
            client.load_bytes(*blob).await?;
        }
        let one = start.0.elapsed();
        let (mine, its) = (cpu(std::process::id())? - start.1, cpu(server)? - start.2);
        println!(
            "one caller: {:.1} us a bare round trip, {:.1} us a load ({:.2}); client {:.1} us, server {:.1} us of processor",
            trips.as_micros() as f64 / 2000.0,
            one.as_micros() as f64 / 2000.0,
            trips.as_secs_f64() / one.as_secs_f64(),
            mine / 2000.0,
            its / 2000.0
        );
        let start = (Instant::now(), cpu(std::process::id())?, cpu(server)?);
        let tasks: Vec<_> = (0..64)
            .map(|n| {
                let (client, blobs) = (client.clone(), blobs.clone());
                tokio::spawn(async move {
                    for blob in blobs[4000..].iter().skip(n).step_by(64) {
                        client.load_bytes(*blob).await?;
                    }
                    Result::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let (time, count) = (start.0.elapsed(), BLOBS - 4000);
        let (mine, its) = (cpu(std::process::id())? - start.1, cpu(server)? - start.2);
        println!(
            "64 callers: {:.0} loads/s; client {:.1} us, server {:.1} us of processor",
            count as f64 / time.as_secs_f64(),
            mine / count as f64,
            its / count as f64
        );
        let start = Instant::now();
        for blob in blobs.iter() {
            client.load_bytes(*blob).await?;
        }
        println!("hits: {:.0} a second", BLOBS as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn trip(bare: &mut TcpStream) -> Result<()> {
    let mut answer = [0; SIZE];
    bare.write_all(&[0; 16])?;
    Ok(bare.read_exact(&mut answer)?)
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}

/// Microseconds of processor time that a process has taken.
fn cpu(process: u32) -> Result<f64> {
    let mut sum = 0.0;
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += stat.split(' ').next().ok_or("no time")?.parse::<f64>()? / 1000.0;
    }
    Ok(sum)
}
