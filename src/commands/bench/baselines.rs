//! Baselines: bare loops around system calls, which no program can exceed on this machine.
//!
//! They use the standard library's blocking sockets and two threads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use blobferry_platform::aligned_buf::AlignedBuf;
use rustix::fs::{FallocateFlags, fallocate, sendfile};

/// The bytes of one read or write of a loop.
const BLOCK: usize = 256 << 10;

/// The number of blocks between two threads of a loop.
const BLOCKS: usize = 8;

/// The bytes of a small request.
const REQUEST: usize = 32;

/// A loop that copies a number of bytes from a file to a new one, and returns the time in seconds.
pub(super) type CopyLoop = fn(&Path, &Path, u64) -> io::Result<f64>;

/// Connects a stream over the loopback, and returns both ends.
fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of a bare loop panicked")))
}

/// Copies `size` bytes of a file over a socket into a new file, and returns the time in seconds.
///
/// The connection exists before; the time begins with a request on it. The new file's space is
/// allocated first. With `sync`, the file is also synced. It is removed afterwards.
pub(super) fn copy(from: &Path, to: &Path, size: u64, sync: bool) -> io::Result<f64> {
    let (mut near, far) = connected()?;
    let source = File::open(from)?;
    let sender = std::thread::spawn(move || send(source, far, size));
    let begun = Instant::now();
    near.write_all(&[0; REQUEST])?;
    let mut file = File::create(to)?;
    fallocate(&file, FallocateFlags::empty(), 0, size)?;
    let mut buffer = AlignedBuf::new(BLOCK);
    let mut left = size;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(BLOCK));
        let n = near.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    if sync {
        file.sync_data()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    joined(sender)?;
    std::fs::remove_file(to)?;
    Ok(seconds)
}

fn send(source: File, mut to: TcpStream, size: u64) -> io::Result<()> {
    to.read_exact(&mut [0; REQUEST])?;
    let mut source = source.take(size);
    let mut buffer = AlignedBuf::new(BLOCK);
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n])?;
    }
}

/// Like [`copy`], but hashes what it receives.
///
/// The sender uses `sendfile`. One thread reads the socket, and another hashes and writes. No
/// faster arrangement is known.
pub(super) fn copy_and_hash(from: &Path, to: &Path, size: u64) -> io::Result<f64> {
    let (mut near, far) = connected()?;
    let source = File::open(from)?;
    let sender = std::thread::spawn(move || send_in_kernel(&source, far, size));
    let begun = Instant::now();
    near.write_all(&[0; REQUEST])?;
    let mut file = File::create(to)?;
    fallocate(&file, FallocateFlags::empty(), 0, size)?;
    let (fill, filled) = mpsc::sync_channel::<(AlignedBuf, usize)>(BLOCKS);
    let (spare, spares) = mpsc::sync_channel(BLOCKS);
    let writer = std::thread::spawn(move || {
        let mut hasher = blake3::Hasher::new();
        for (block, n) in (0..BLOCKS).map(|_| (AlignedBuf::new(BLOCK), 0)).chain(filled) {
            hasher.update(&block[..n]);
            file.write_all(&block[..n])?;
            // The reader may have ended.
            let _ = spare.send(block);
        }
        std::hint::black_box(hasher.finalize());
        Ok(())
    });
    let mut left = size;
    while left > 0 {
        let Ok(mut block) = spares.recv() else { break };
        let most = block.len().min(usize::try_from(left).unwrap_or(BLOCK));
        let n = near.read(&mut block[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= n as u64;
        if fill.send((block, n)).is_err() {
            break;
        }
    }
    drop((fill, spares));
    joined(writer)?;
    let seconds = begun.elapsed().as_secs_f64();
    joined(sender)?;
    std::fs::remove_file(to)?;
    Ok(seconds)
}

fn send_in_kernel(source: &File, mut to: TcpStream, size: u64) -> io::Result<()> {
    to.read_exact(&mut [0; REQUEST])?;
    let mut sent = 0;
    while sent < size {
        let most = BLOCK.min(usize::try_from(size - sent).unwrap_or(BLOCK));
        if sendfile(&to, source, Some(&mut sent), most)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// Runs several copy loops at once, each with its own files, and returns the time until all are
/// done, in seconds.
pub(super) fn copies(copy: CopyLoop, from: &[&Path], to: &Path, size: u64) -> io::Result<f64> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let start = |(number, from): (usize, &&Path)| {
            let (from, to) = (from.to_path_buf(), to.join(format!("bare-{number}")));
            scope.spawn(move || copy(&from, &to, size))
        };
        let loops: Vec<_> = from.iter().enumerate().map(start).collect();
        loops.into_iter().try_for_each(|one| match one.join() {
            Ok(copied) => copied.map(drop),
            Err(_) => Err(io::Error::other("a thread of a bare loop panicked")),
        })
    })?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Makes `times` round trips on one connection, each with `depth` requests and answers of `answer`
/// bytes. Returns the time per request, in seconds.
pub(super) fn round_trip(answer: usize, depth: usize, times: usize) -> io::Result<f64> {
    let (mut near, mut far) = connected()?;
    let answering = std::thread::spawn(move || {
        let (mut requests, answers) = (vec![0; REQUEST * depth], vec![7; answer * depth]);
        for _ in 0..times {
            far.read_exact(&mut requests)?;
            far.write_all(&answers)?;
        }
        Ok(())
    });
    let (requests, mut answers) = (vec![0; REQUEST * depth], vec![0; answer * depth]);
    let begun = Instant::now();
    for _ in 0..times {
        near.write_all(&requests)?;
        near.read_exact(&mut answers)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    joined(answering)?;
    Ok(seconds / (times * depth) as f64)
}

/// Appends `bytes` to a file and syncs it, `times` times. Returns the time of each, in seconds.
pub(super) fn append_and_sync(dir: &Path, bytes: usize, times: usize) -> io::Result<f64> {
    let path = dir.join("appended");
    let mut file = File::create(&path)?;
    let bytes = vec![7; bytes];
    let begun = Instant::now();
    for _ in 0..times {
        file.write_all(&bytes)?;
        file.sync_data()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(seconds / times as f64)
}

/// Hashes `size` bytes of a block that fits the processor's cache, and returns the time in seconds.
pub(super) fn hash(size: u64) -> f64 {
    let block = vec![7; BLOCK];
    let mut hasher = blake3::Hasher::new();
    let begun = Instant::now();
    let mut left = size;
    while left > 0 {
        let n = block.len().min(usize::try_from(left).unwrap_or(BLOCK));
        hasher.update(&block[..n]);
        left -= n as u64;
    }
    std::hint::black_box(hasher.finalize());
    begun.elapsed().as_secs_f64()
}

/// Opens files, and returns the number per second.
pub(super) fn opens(paths: &[impl AsRef<Path>]) -> io::Result<f64> {
    let begun = Instant::now();
    for path in paths {
        File::open(path)?.metadata()?;
    }
    Ok(paths.len() as f64 / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_loops_copy_everything_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::write(&from, vec![1; 600_000]).unwrap();
        let to = dir.path().join("to");
        assert!(copy(&from, &to, 600_000, true).unwrap() > 0.0);
        assert!(copy(&from, &to, 600_001, false).is_err(), "there is no more");
        assert!(copy_and_hash(&from, &to, 600_000).unwrap() > 0.0);
        assert!(copy_and_hash(&from, &to, 600_001).is_err(), "there is no more");
        assert!(copies(copy_and_hash, &[&from, &from], dir.path(), 600_000).unwrap() > 0.0);
        let _ = std::fs::remove_file(&to);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn round_trips_and_syncs_take_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(round_trip(10_000, 3, 5).unwrap() > 0.0);
        assert!(append_and_sync(dir.path(), 100, 2).unwrap() > 0.0);
        assert!(opens(&[dir.path()]).unwrap() > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
