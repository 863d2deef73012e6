//! A cache's directory whose files have the right names and any contents: blobs with stamps of all kinds, beginnings of
//! blobs, the account of its room, locks, and what dead processes have left.
//!
//! Whatever is in there, a blob can be had, and what is handed out has the bytes that its stamp tells (`house.rs`).

use std::path::{Path, PathBuf};

use blobferry_cache::{Cache, CacheConfig, Claim};
use blobferry_protocol::{BlobId, Oid, Tid};

use crate::bytes::Bytes;
use crate::house::{House, Stamp, Thing, account, digest_of, part_of, path_of, this_boot, truth};

/// Fills a cache's directory, and uses it.
pub fn cache_contents(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut house = House::new();
    let layout: &[u8] = if bytes.below(16) == 0 { bytes.run() } else { b" zeocache\n" };
    house.put(Path::new(".layout"), Thing::File(layout.to_vec()));
    for _ in 0..bytes.below(10) {
        put(&mut house, &mut bytes);
    }
    if bytes.below(8) != 0 {
        house.put_account();
    }
    let limit = bytes.flag().then(|| bytes.number().saturating_mul(512));
    match Cache::open(house.root(), CacheConfig { shared: false, limit }) {
        Ok(cache) => {
            for _ in 0..10 {
                let Some(act) = bytes.next() else { break };
                does(&house, &cache, act, &mut bytes);
            }
            drop(cache);
            house.check();
        }
        Err(error) => {
            assert!(layout.trim_ascii() != b"zeocache", "{error}");
            house.check_untouched();
        }
    }
}

fn put(house: &mut House, bytes: &mut Bytes<'_>) {
    match bytes.below(10) {
        0..=3 => {
            let blob = blob(bytes);
            let content = content(blob, bytes);
            let stamp = stamp(&content, bytes);
            if house.put(&path_of(blob), Thing::File(content)) {
                house.stamp(&path_of(blob), stamp);
                if bytes.below(8) == 0 {
                    house.mark(&path_of(blob), "user.blobferry.pinned", b"");
                }
            }
        }
        4 | 5 => {
            let blob = blob(bytes);
            let part = content(blob, bytes);
            if house.put(&part_of(blob), Thing::File(part)) {
                let announced = match bytes.below(4) {
                    0 => bytes.run().to_vec(),
                    1 => bytes.number().to_be_bytes().to_vec(),
                    _ => (truth(blob).len() as u64).to_be_bytes().to_vec(),
                };
                house.mark(&part_of(blob), "user.blobferry", &announced);
            }
        }
        6 => {
            let account = any_account(bytes);
            house.put(Path::new("tmp/.room"), Thing::File(account));
        }
        7 => {
            let at = path_of(blob(bytes)).with_file_name(".lock");
            house.put(&at, Thing::File(bytes.run().to_vec()));
        }
        8 => {
            let names = [".lock", "room-1", "room-x", "blob-abc", "dir/dir/room-2"];
            let at = PathBuf::from("tmp/blobferry-dead").join(bytes.one_of(&names));
            house.put(&at, Thing::File(bytes.run().to_vec()));
        }
        _ => {
            house.put(Path::new("tmp/.lock"), Thing::File(bytes.run().to_vec()));
        }
    }
}

/// One of a few blobs, of which some share a bucket.
fn blob(bytes: &mut Bytes<'_>) -> BlobId {
    BlobId { oid: Oid(bytes.one_of(&[3, 4, 1000])), tid: Tid(bytes.one_of(&[1, 2])) }
}

/// A blob's bytes, or some of them, or others.
fn content(blob: BlobId, bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut content = truth(blob);
    match bytes.below(8) {
        0 => content = bytes.run().to_vec(),
        1 => content.truncate(bytes.byte().into()),
        2 => content.push(bytes.byte()),
        3 => content.iter_mut().take(1).for_each(|byte| *byte ^= 1),
        4 => content.truncate(content.len() / 2),
        _ => {}
    }
    content
}

fn stamp(content: &[u8], bytes: &mut Bytes<'_>) -> Stamp {
    let digest = digest_of(if bytes.below(4) == 0 { b"something else" } else { content });
    let with = |boot: [u8; 16]| [&digest.0[..], &boot].concat();
    match bytes.below(8) {
        0 => Stamp::None,
        1 => Stamp::Trusted(with([0; 16])),
        2 => this_boot().map_or(Stamp::None, |boot| Stamp::Trusted(with(boot))),
        3 => match bytes.run() {
            run if run.len() == 48 => Stamp::None,
            run => Stamp::Unknown(run.to_vec()),
        },
        _ => Stamp::Unproven(with([bytes.byte().max(1); 16]), digest),
    }
}

/// An account of the cache's room: any bytes, or one that is well made and tells any numbers.
fn any_account(bytes: &mut Bytes<'_>) -> Vec<u8> {
    if bytes.below(4) == 0 {
        return bytes.run().to_vec();
    }
    let mut number = || {
        let unit = if bytes.flag() { 4096 } else { 1 };
        bytes.number().checked_mul(unit).unwrap_or(u64::MAX - 1)
    };
    let numbers = [number(), number(), number()];
    account(numbers, bytes.below(4), this_boot().filter(|_| bytes.below(4) != 0))
}

fn does(house: &House, cache: &Cache, act: u8, bytes: &mut Bytes<'_>) {
    match act % 16 {
        0 => drop(cache.gc(None)),
        1 => drop(cache.gc(Some(bytes.number().saturating_mul(512)))),
        2 => drop(cache.set_limit(bytes.flag().then(|| bytes.number().saturating_mul(4096)))),
        3 => verify(house, cache),
        4 => {
            if let Ok(usage) = cache.usage() {
                assert!(usage.in_use <= usage.bytes && usage.pinned <= usage.bytes, "{usage:?}");
            }
        }
        5 => drop(cache.pin(blob(bytes))),
        6 => drop(cache.unpin(blob(bytes))),
        7 | 8 => {
            if let Ok(Some(cached)) = cache.get(blob(bytes)) {
                house.serves(&cached);
            }
        }
        9 => leave(house, cache, blob(bytes), bytes),
        10 | 11 => house.load(cache, blob(bytes)),
        12 => damage(house, bytes),
        _ => house.fetch(cache, blob(bytes), bytes.flag()),
    }
}

/// Writes anything to one of the files in which small blobs are.
fn damage(house: &House, bytes: &mut Bytes<'_>) {
    let entries = std::fs::read_dir(house.root().join("packs")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    let Some(path) = files.get(usize::from(bytes.byte()) % files.len().max(1)) else { return };
    let file = std::fs::File::options().write(true).open(path).expect("it is the cache's own");
    let len = file.metadata().expect("it is there").len();
    match bytes.below(4) {
        0 => file.set_len(bytes.number().min(len)).expect("it is shorter"),
        _ => {
            // Most of the index is empty: a part that is not is found by chance only where all of it is written.
            let run: Vec<u8> = bytes.run().iter().copied().cycle().take(len.min(1 << 17) as usize).collect();
            let at = bytes.number() % (len + 1);
            std::os::unix::fs::FileExt::write_all_at(&file, &run, at).expect("it can be written to");
        }
    }
}

/// Whatever is left afterwards is what its stamp tells.
fn verify(house: &House, cache: &Cache) {
    let Ok(verified) = cache.verify(|_| {}) else { return };
    for blob in verified.damaged {
        let there = house.root().join(path_of(blob)).exists();
        assert!(!there, "{blob} is damaged, and still there");
    }
    for entry in cache.blobs().flatten() {
        if let Ok(Some(cached)) = cache.get(entry.blob) {
            house.serves(&cached);
        }
    }
}

/// Begins a download and leaves it in the middle.
fn leave(house: &House, cache: &Cache, blob: BlobId, bytes: &mut Bytes<'_>) {
    match cache.claim(blob) {
        Ok(Claim::Hit(cached)) => house.serves(&cached),
        Ok(Claim::Download(mut download)) => {
            let truth = truth(blob);
            let some = &truth[..truth.len().min(bytes.byte().into())];
            let started = download.start(0, truth.len() as u64).and_then(|()| download.write(some));
            assert!(started.is_err() || download.written() == some.len() as u64);
            if bytes.flag() {
                download.leave();
            }
        }
        Err(_) => {}
    }
}
