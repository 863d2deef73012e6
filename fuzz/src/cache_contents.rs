//! Fuzz target: a cache directory whose files have valid names and arbitrary contents.
//!
//! The input chooses blobs with stamps of all kinds, partial downloads, the usage file, lock files
//! and leftovers of dead processes. Whatever they contain, every blob can be downloaded, and the
//! bytes of a served blob match its stamp (`cache_fixture.rs`).

use std::path::{Path, PathBuf};

use blobferry_cache::{Cache, CacheConfig, Claim};
use blobferry_protocol::{BlobId, Oid, Tid};

use crate::cache_fixture::{
    CacheFixture, Entry, Stamp, account, digest_of, expected_bytes, partial_path_of, path_of, this_boot,
};
use crate::input::Input;
use arbitrary::Unstructured;

/// Fills a cache directory from the input, and uses the cache.
pub fn cache_contents(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut fixture = CacheFixture::new();
    let layout: &[u8] = if input.below(16) == 0 { input.prefixed() } else { b" zeocache\n" };
    fixture.put(Path::new(".layout"), Entry::File(layout.to_vec()));
    for _ in 0..input.below(10) {
        put(&mut fixture, &mut input);
    }
    if input.below(8) != 0 {
        fixture.put_account();
    }
    let limit = input.flag().then(|| input.number().saturating_mul(512));
    match Cache::open(fixture.root(), CacheConfig { shared: false, limit }) {
        Ok(cache) => {
            for _ in 0..10 {
                let Some(act) = input.next_byte() else { break };
                run_act(&fixture, &cache, act, &mut input);
            }
            drop(cache);
            fixture.check();
        }
        Err(error) => {
            assert!(layout.trim_ascii() != b"zeocache", "{error}");
            fixture.check_untouched();
        }
    }
}

fn put(fixture: &mut CacheFixture, input: &mut Unstructured<'_>) {
    match input.below(10) {
        0..=3 => {
            let blob = blob(input);
            let content = content(blob, input);
            let stamp = stamp(&content, input);
            if fixture.put(&path_of(blob), Entry::File(content)) {
                fixture.stamp(&path_of(blob), stamp);
                if input.below(8) == 0 {
                    fixture.mark(&path_of(blob), "user.blobferry.pinned", b"");
                }
            }
        }
        4 | 5 => {
            let blob = blob(input);
            let part = content(blob, input);
            if fixture.put(&partial_path_of(blob), Entry::File(part)) {
                let announced = match input.below(4) {
                    0 => input.prefixed().to_vec(),
                    1 => input.number().to_be_bytes().to_vec(),
                    _ => (expected_bytes(blob).len() as u64).to_be_bytes().to_vec(),
                };
                fixture.mark(&partial_path_of(blob), "user.blobferry", &announced);
            }
        }
        6 => {
            let account = any_account(input);
            fixture.put(Path::new("tmp/.room"), Entry::File(account));
        }
        7 => {
            let at = path_of(blob(input)).with_file_name(".lock");
            fixture.put(&at, Entry::File(input.prefixed().to_vec()));
        }
        8 => {
            let names = [".lock", "room-1", "room-x", "blob-abc", "dir/dir/room-2"];
            let at = PathBuf::from("tmp/blobferry-dead").join(input.one_of(&names));
            fixture.put(&at, Entry::File(input.prefixed().to_vec()));
        }
        _ => {
            fixture.put(Path::new("tmp/.lock"), Entry::File(input.prefixed().to_vec()));
        }
    }
}

/// Chooses one of a few blobs; some of them share a bucket.
fn blob(input: &mut Unstructured<'_>) -> BlobId {
    BlobId { oid: Oid(input.one_of(&[3, 4, 1000])), tid: Tid(input.one_of(&[1, 2])) }
}

/// Returns the blob's bytes, a part of them, or other bytes.
fn content(blob: BlobId, input: &mut Unstructured<'_>) -> Vec<u8> {
    let mut content = expected_bytes(blob);
    match input.below(8) {
        0 => content = input.prefixed().to_vec(),
        1 => content.truncate(input.byte().into()),
        2 => content.push(input.byte()),
        3 => content.iter_mut().take(1).for_each(|byte| *byte ^= 1),
        4 => content.truncate(content.len() / 2),
        _ => {}
    }
    content
}

fn stamp(content: &[u8], input: &mut Unstructured<'_>) -> Stamp {
    let digest = digest_of(if input.below(4) == 0 { b"something else" } else { content });
    let with = |boot: [u8; 16]| [&digest.0[..], &boot].concat();
    match input.below(8) {
        0 => Stamp::None,
        1 => Stamp::Trusted(with([0; 16])),
        2 => this_boot().map_or(Stamp::None, |boot| Stamp::Trusted(with(boot))),
        3 => match input.prefixed() {
            run if run.len() == 48 => Stamp::None,
            run => Stamp::Unknown(run.to_vec()),
        },
        _ => Stamp::Unproven(with([input.byte().max(1); 16]), digest),
    }
}

/// Returns a usage file: arbitrary bytes, or a valid file with arbitrary numbers.
fn any_account(input: &mut Unstructured<'_>) -> Vec<u8> {
    if input.below(4) == 0 {
        return input.prefixed().to_vec();
    }
    let mut number = || {
        let unit = if input.flag() { 4096 } else { 1 };
        input.number().checked_mul(unit).unwrap_or(u64::MAX - 1)
    };
    let numbers = [number(), number(), number()];
    account(numbers, input.below(4), this_boot().filter(|_| input.below(4) != 0))
}

fn run_act(fixture: &CacheFixture, cache: &Cache, act: u8, input: &mut Unstructured<'_>) {
    match act % 16 {
        0 => drop(cache.gc(None)),
        1 => drop(cache.gc(Some(input.number().saturating_mul(512)))),
        2 => drop(cache.set_limit(input.flag().then(|| input.number().saturating_mul(4096)))),
        3 => verify(fixture, cache),
        4 => {
            if let Ok(usage) = cache.usage() {
                assert!(usage.in_use <= usage.bytes && usage.pinned <= usage.bytes, "{usage:?}");
            }
        }
        5 => drop(cache.pin(blob(input))),
        6 => drop(cache.unpin(blob(input))),
        7 | 8 => {
            if let Ok(Some(cached)) = cache.get(blob(input)) {
                fixture.check_served(&cached);
            }
        }
        9 => leave(fixture, cache, blob(input), input),
        10 | 11 => fixture.load(cache, blob(input)),
        12 => damage(fixture, input),
        _ => fixture.fetch(cache, blob(input), input.flag()),
    }
}

/// Overwrites a part of one of the segment files.
fn damage(fixture: &CacheFixture, input: &mut Unstructured<'_>) {
    let entries = std::fs::read_dir(fixture.root().join("packs")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    let Some(path) = files.get(usize::from(input.byte()) % files.len().max(1)) else { return };
    let file = std::fs::File::options().write(true).open(path).expect("it is the cache's own");
    let len = file.metadata().expect("it is there").len();
    match input.below(4) {
        0 => file.set_len(input.number().min(len)).expect("it is shorter"),
        _ => {
            // Most of the index is empty. A run of bytes repeated over a large range hits an entry
            // that is in use.
            let run: Vec<u8> =
                input.prefixed().iter().copied().cycle().take(len.min(1 << 17) as usize).collect();
            let at = input.number() % (len + 1);
            std::os::unix::fs::FileExt::write_all_at(&file, &run, at).expect("it can be written to");
        }
    }
}

/// Verifies the cache: every blob that is left matches its stamp.
fn verify(fixture: &CacheFixture, cache: &Cache) {
    let Ok(verified) = cache.verify(|_| {}) else { return };
    for blob in verified.damaged {
        let there = fixture.root().join(path_of(blob)).exists();
        assert!(!there, "{blob} is damaged, and still there");
    }
    for entry in cache.blobs().flatten() {
        if let Ok(Some(cached)) = cache.get(entry.blob) {
            fixture.check_served(&cached);
        }
    }
}

/// Starts a download and abandons it.
fn leave(fixture: &CacheFixture, cache: &Cache, blob: BlobId, input: &mut Unstructured<'_>) {
    match cache.claim(blob) {
        Ok(Claim::Hit(cached)) => fixture.check_served(&cached),
        Ok(Claim::Download(mut download)) => {
            let expected_bytes = expected_bytes(blob);
            let some = &expected_bytes[..expected_bytes.len().min(input.byte().into())];
            let started = download.start(0, expected_bytes.len() as u64).and_then(|()| download.write(some));
            assert!(started.is_err() || download.written() == some.len() as u64);
            if input.flag() {
                download.leave();
            }
        }
        Err(_) => {}
    }
}
