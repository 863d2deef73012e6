//! A cache's directory with things in it that have any names: files, directories, links and pipes.
//!
//! The cache opens it or refuses it, and hands out, sweeps, counts and evicts what is its own. Everything else it leaves as
//! it is, and what it hands out is a blob (`house.rs`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blobferry_cache::{Cache, CacheConfig, CacheError, LayoutError};
use blobferry_protocol::{BlobId, Oid, Tid};

use crate::bytes::Bytes;
use crate::house::{House, Thing, part_of, path_of, truth};

/// Puts things into a cache's directory, and uses it.
pub fn cache_names(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut house = House::new();
    if bytes.below(8) != 0 {
        house.put(Path::new(".layout"), Thing::File(b"zeocache".to_vec()));
    }
    for _ in 0..bytes.below(12) {
        let at = place(&mut bytes);
        let thing = thing(&at, &mut bytes);
        house.put(&at, thing);
    }
    if bytes.below(8) != 0 {
        house.put_account();
    }
    let limit = bytes.flag().then(|| bytes.number().saturating_mul(512));
    match Cache::open(house.root(), CacheConfig { shared: false, limit }) {
        Ok(cache) => acts(&house, &cache, &mut bytes),
        Err(CacheError::Layout(LayoutError::NotBlobs { .. } | LayoutError::Other { .. })) => {
            return house.check_untouched();
        }
        Err(_) => {}
    }
    house.check();
}

fn acts(house: &House, cache: &Cache, bytes: &mut Bytes<'_>) {
    for _ in 0..8 {
        let Some(act) = bytes.next() else { break };
        match act % 16 {
            0 => drop(cache.gc(None)),
            1 => drop(cache.clear()),
            2 => drop(cache.verify(|_| {})),
            3 => drop(cache.usage()),
            4 => {
                if let Ok(Some(cached)) = cache.get(blob(bytes)) {
                    house.serves(&cached);
                }
            }
            5 => list(house, cache),
            _ => house.fetch(cache, blob(bytes), bytes.flag()),
        }
    }
}

fn list(house: &House, cache: &Cache) {
    for entry in cache.blobs().flatten() {
        assert_eq!(entry.path, house.root().join(path_of(entry.blob)), "it is not what it is called");
        let metadata = entry.path.symlink_metadata();
        assert!(metadata.is_ok_and(|metadata| metadata.is_file()), "{:?} is no file", entry.path);
    }
}

/// One of a few blobs, in two buckets and at the end of the numbers.
fn blob(bytes: &mut Bytes<'_>) -> BlobId {
    let oid = bytes.one_of(&[0, 1, 997, 998, u64::MAX]);
    BlobId { oid: Oid(oid), tid: Tid(bytes.one_of(&[1, 0xabc, u64::MAX])) }
}

/// Somewhere in the directory, often where something else should be.
fn place(bytes: &mut Bytes<'_>) -> PathBuf {
    let dir = match bytes.below(8) {
        0 => PathBuf::new(),
        1 => PathBuf::from("tmp"),
        2 => PathBuf::from("tmp/partial"),
        3 => PathBuf::from("tmp/blobferry-dead"),
        4 => name(bytes),
        _ => PathBuf::from(bytes.one_of(&["0", "1", "01", "996", "997"])),
    };
    dir.join(name(bytes))
}

/// A name: one that means something, one that nearly does, or any other.
fn name(bytes: &mut Bytes<'_>) -> PathBuf {
    const NAMES: &[&str] =
        &[".lock", ".layout", "tmp", ".room", "room-1", "blobferry-x", "partial", "0", "1", "blobferry-"];
    let known = match bytes.below(8) {
        0 | 1 => return any_name(bytes.run()),
        2 => PathBuf::from(bytes.one_of(NAMES)),
        3..=5 => path_of(blob(bytes)),
        _ => part_of(blob(bytes)),
    };
    let mut name = known.file_name().map_or_else(Vec::new, |name| name.as_bytes().to_vec());
    // One letter of it is another one, is too much, or too little.
    let at = usize::from(bytes.byte()) % name.len().max(1);
    match bytes.below(8) {
        0 => name.insert(at, bytes.byte()),
        1 => drop(name.remove(at)),
        2 => name[at] = bytes.byte(),
        3 => name.make_ascii_uppercase(),
        4 => name.insert(0, bytes.one_of(b"0+-. ")),
        _ => {}
    }
    any_name(&name)
}

/// These bytes as one name, if they can be.
fn any_name(bytes: &[u8]) -> PathBuf {
    let name: Vec<u8> = bytes.iter().copied().filter(|byte| ![0, b'/'].contains(byte)).take(255).collect();
    match &name[..] {
        b"" | b"." | b".." => PathBuf::from("x"),
        name => PathBuf::from(OsStr::from_bytes(name)),
    }
}

fn thing(at: &Path, bytes: &mut Bytes<'_>) -> Thing {
    // What the cache opens by name, whoever could put a link there: all of it belongs to one user.
    let opened = [".room", ".layout", ".lock"].iter().any(|name| at.ends_with(name));
    match bytes.below(8) {
        0 => Thing::Dir,
        1 if !opened => Thing::Link,
        2 if !opened => Thing::Pipe,
        3 => Thing::File(truth(blob(bytes))),
        4 if at == Path::new(".layout") => Thing::File(b"bushy".to_vec()),
        _ => Thing::File(bytes.run().to_vec()),
    }
}
