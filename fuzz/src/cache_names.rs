//! Fuzz target: a cache directory that contains files, directories, links and pipes of any name.
//!
//! The cache opens the directory or refuses it, and serves, sweeps, counts and evicts its own
//! files. It leaves every other entry alone, and serves only blobs (`cache_fixture.rs`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blobferry_cache::{Cache, CacheConfig, CacheError, LayoutError};
use blobferry_protocol::{BlobId, Oid, Tid};

use crate::cache_fixture::{CacheFixture, Entry, expected_bytes, partial_path_of, path_of};
use crate::input::Input;
use arbitrary::Unstructured;

/// Fills a cache directory from the input, and uses the cache.
pub fn cache_names(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut fixture = CacheFixture::new();
    if input.below(8) != 0 {
        fixture.put(Path::new(".layout"), Entry::File(b"zeocache".to_vec()));
    }
    for _ in 0..input.below(12) {
        let at = place(&mut input);
        let entry = entry(&at, &mut input);
        fixture.put(&at, entry);
    }
    if input.below(8) != 0 {
        fixture.put_account();
    }
    let limit = input.flag().then(|| input.number().saturating_mul(512));
    match Cache::open(fixture.root(), CacheConfig { shared: false, limit }) {
        Ok(cache) => acts(&fixture, &cache, &mut input),
        Err(CacheError::Layout(LayoutError::NotBlobs { .. } | LayoutError::Other { .. })) => {
            return fixture.check_untouched();
        }
        Err(_) => {}
    }
    fixture.check();
}

fn acts(fixture: &CacheFixture, cache: &Cache, input: &mut Unstructured<'_>) {
    for _ in 0..8 {
        let Some(act) = input.next_byte() else { break };
        match act % 16 {
            0 => drop(cache.gc(None)),
            1 => drop(cache.clear()),
            2 => drop(cache.verify(|_| {})),
            3 => drop(cache.usage()),
            4 => {
                if let Ok(Some(cached)) = cache.get(blob(input)) {
                    fixture.check_served(&cached);
                }
            }
            5 => list(fixture, cache),
            _ => fixture.fetch(cache, blob(input), input.flag()),
        }
    }
}

fn list(fixture: &CacheFixture, cache: &Cache) {
    for entry in cache.blobs().flatten() {
        assert_eq!(entry.path, fixture.root().join(path_of(entry.blob)), "it is not what it is called");
        let metadata = entry.path.symlink_metadata();
        assert!(metadata.is_ok_and(|metadata| metadata.is_file()), "{:?} is no file", entry.path);
    }
}

/// Chooses one of a few blobs, in two buckets and at the end of the range of numbers.
fn blob(input: &mut Unstructured<'_>) -> BlobId {
    let oid = input.one_of(&[0, 1, 997, 998, u64::MAX]);
    BlobId { oid: Oid(oid), tid: Tid(input.one_of(&[1, 0xabc, u64::MAX])) }
}

/// Chooses a path in the directory, often one where another kind of entry belongs.
fn place(input: &mut Unstructured<'_>) -> PathBuf {
    let dir = match input.below(8) {
        0 => PathBuf::new(),
        1 => PathBuf::from("tmp"),
        2 => PathBuf::from("tmp/partial"),
        3 => PathBuf::from("tmp/blobferry-dead"),
        4 => name(input),
        _ => PathBuf::from(input.one_of(&["0", "1", "01", "996", "997"])),
    };
    dir.join(name(input))
}

/// Chooses a name: a valid one, one that is almost valid, or any other.
fn name(input: &mut Unstructured<'_>) -> PathBuf {
    const NAMES: &[&str] =
        &[".lock", ".layout", "tmp", ".room", "room-1", "blobferry-x", "partial", "0", "1", "blobferry-"];
    let known = match input.below(8) {
        0 | 1 => return any_name(input.prefixed()),
        2 => PathBuf::from(input.one_of(NAMES)),
        3..=5 => path_of(blob(input)),
        _ => partial_path_of(blob(input)),
    };
    let mut name = known.file_name().map_or_else(Vec::new, |name| name.as_bytes().to_vec());
    // Changes, inserts or removes one letter.
    let at = usize::from(input.byte()) % name.len().max(1);
    match input.below(8) {
        0 => name.insert(at, input.byte()),
        1 => drop(name.remove(at)),
        2 => name[at] = input.byte(),
        3 => name.make_ascii_uppercase(),
        4 => name.insert(0, input.one_of(b"0+-. ")),
        _ => {}
    }
    any_name(&name)
}

/// Turns bytes into one file name.
fn any_name(bytes: &[u8]) -> PathBuf {
    let name: Vec<u8> = bytes.iter().copied().filter(|byte| ![0, b'/'].contains(byte)).take(255).collect();
    match &name[..] {
        b"" | b"." | b".." => PathBuf::from("x"),
        name => PathBuf::from(OsStr::from_bytes(name)),
    }
}

fn entry(at: &Path, input: &mut Unstructured<'_>) -> Entry {
    // The cache opens these files by name. A link or pipe there is out of scope: one user owns
    // them.
    let opened = [".room", ".layout", ".lock"].iter().any(|name| at.ends_with(name));
    match input.below(8) {
        0 => Entry::Dir,
        1 if !opened => Entry::Link,
        2 if !opened => Entry::Pipe,
        3 => Entry::File(expected_bytes(blob(input))),
        4 if at == Path::new(".layout") => Entry::File(b"bushy".to_vec()),
        _ => Entry::File(input.prefixed().to_vec()),
    }
}
