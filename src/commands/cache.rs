//! `cache`: manage this machine's cache: list, limit, pin, verify and remove blobs.
//!
//! It sends no request to a server, so blobs have no names here. `OID@TID` identifies a blob, or
//! the path that `get` prints.

use std::io::Write;
use std::path::Path;
use std::time::UNIX_EPOCH;

use blobferry_cache::{Cache, CacheEntry, CacheError, Evicted, Usage};
use blobferry_platform::blobdir::Layout;
use blobferry_protocol::{BlobId, Oid, Tid};
use serde::Serialize;

use super::open_cache;
use crate::cli::{CacheArgs, CacheCommand, CacheGcArgs, CacheLsArgs, CachePinArgs, Global};
use crate::failure::Failure;
use crate::format::{iso, size};
use crate::output::{Output, Render, tabbed};
use crate::progress::Bar;

/// Runs `cache`.
pub(super) fn run<W: Write>(
    args: &CacheArgs,
    global: &Global,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let cache = open_cache(global)?;
    match &args.command {
        None => output.line(&Report::from(cache.usage()?)),
        Some(CacheCommand::Ls(args)) => ls(args, &cache, output),
        Some(CacheCommand::Gc(args)) => gc(args, &cache, output),
        Some(CacheCommand::Verify) => verify(&cache, output),
        Some(CacheCommand::Pin(args)) => pin(args, &cache, output),
        Some(CacheCommand::Clear) => output.line(&Freed::from(cache.clear()?)),
    }
}

/// The disk usage of a cache.
#[derive(Serialize)]
struct Report {
    blobs: u64,
    bytes: u64,
    in_use: u64,
    pinned: u64,
    packs: u64,
    packed: u64,
    unfinished: u64,
    limit: Option<u64>,
}

impl From<Usage> for Report {
    fn from(usage: Usage) -> Report {
        let Usage { blobs, bytes, in_use, pinned, segments: packs, segment_bytes: packed, unfinished, limit } =
            usage;
        Report { blobs, bytes, in_use, pinned, packs, packed, unfinished, limit }
    }
}

impl Render for Report {
    fn plain(&self) -> String {
        let limit = self.limit.map_or_else(|| "none".into(), |limit| limit.to_string());
        let numbers = [
            ("blobs", self.blobs),
            ("bytes", self.bytes),
            ("in_use", self.in_use),
            ("pinned", self.pinned),
            ("packs", self.packs),
            ("packed", self.packed),
            ("unfinished", self.unfinished),
        ];
        let lines = numbers.map(|(name, number)| format!("{name}\t{number}\n"));
        format!("{}limit\t{limit}", lines.concat())
    }
}

/// A cached blob.
#[derive(Serialize)]
struct Listed<'a> {
    oid: u64,
    #[serde(serialize_with = "crate::output::text")]
    tid: Tid,
    size: u64,
    on_disk: u64,
    used: String,
    in_use: bool,
    pinned: bool,
    path: &'a Path,
    #[serde(skip)]
    long: bool,
}

impl Render for Listed<'_> {
    fn plain(&self) -> String {
        let blob = BlobId { oid: Oid(self.oid), tid: self.tid };
        let state = match (self.in_use, self.pinned) {
            (false, false) => "-",
            (true, false) => "in use",
            (false, true) => "pinned",
            (true, true) => "in use, pinned",
        };
        match self.long {
            true => tabbed([&blob, &self.size, &self.on_disk, &self.used, &state, &self.path.display()]),
            false => blob.to_string(),
        }
    }
}

fn ls<W: Write>(args: &CacheLsArgs, cache: &Cache, output: &mut Output<W>) -> Result<(), Failure> {
    for entry in cache.blobs().chain(cache.packed_blobs()) {
        let CacheEntry { blob, path, size, on_disk, used, in_use, pinned } = entry?;
        let used = iso(used.duration_since(UNIX_EPOCH).unwrap_or_default());
        let (oid, tid) = (blob.oid.0, blob.tid);
        output.line(&Listed {
            oid,
            tid,
            size,
            on_disk,
            used,
            in_use,
            pinned,
            path: &path,
            long: args.long,
        })?;
    }
    Ok(())
}

/// The removed blobs.
#[derive(Serialize)]
struct Freed {
    blobs: u64,
    packs: u64,
    bytes: u64,
}

impl From<Evicted> for Freed {
    fn from(Evicted { blobs, segments: packs, bytes }: Evicted) -> Freed {
        Freed { blobs, packs, bytes }
    }
}

impl Render for Freed {
    fn plain(&self) -> String {
        let packs = match self.packs {
            0 => String::new(),
            packs => format!(" and {packs} packs of small ones"),
        };
        format!("removed {} blobs{packs} ({})", self.blobs, size(self.bytes))
    }
}

fn gc<W: Write>(args: &CacheGcArgs, cache: &Cache, output: &mut Output<W>) -> Result<(), Failure> {
    let to = args.to.map(|size| size.0);
    let removed = match args.limit {
        Some(limit) => {
            let first = cache.set_limit(limit.0)?;
            let then = cache.gc(to)?;
            Evicted {
                blobs: first.blobs + then.blobs,
                segments: first.segments + then.segments,
                bytes: first.bytes + then.bytes,
            }
        }
        None => cache.gc(to)?,
    };
    output.line(&Freed::from(removed))
}

/// The result of reading all blobs.
#[derive(Serialize)]
struct Verified {
    proven: u64,
    bytes: u64,
    unverifiable: u64,
    damaged: Vec<String>,
}

impl Render for Verified {
    fn plain(&self) -> String {
        let damaged: String = self.damaged.iter().map(|blob| format!("damaged, removed\t{blob}\n")).collect();
        let Verified { proven, bytes, unverifiable, .. } = self;
        format!("{damaged}proven\t{proven} blobs ({})\nunverifiable\t{unverifiable} blobs", size(*bytes))
    }
}

fn verify<W: Write>(cache: &Cache, output: &mut Output<W>) -> Result<(), Failure> {
    let usage = cache.usage()?;
    let bar = Bar::new("verifying", usage.bytes + usage.segment_bytes);
    let verified = cache.verify(|entry| bar.part(entry.on_disk).complete())?;
    drop(bar);
    let damaged: Vec<String> = verified.damaged.iter().map(ToString::to_string).collect();
    let count = damaged.len();
    let blobferry_cache::Verified { proven, bytes, unverifiable, .. } = verified;
    output.line(&Verified { proven, bytes, unverifiable, damaged })?;
    if count > 0 { Err(Failure::DamagedCache { count }) } else { Ok(()) }
}

/// A blob that was pinned or unpinned.
#[derive(Serialize)]
struct Pinned {
    oid: u64,
    #[serde(serialize_with = "crate::output::text")]
    tid: Tid,
    pinned: bool,
}

impl Render for Pinned {
    fn plain(&self) -> String {
        let blob = BlobId { oid: Oid(self.oid), tid: self.tid };
        tabbed([&if self.pinned { "pinned" } else { "not pinned" }, &blob])
    }
}

fn pin<W: Write>(args: &CachePinArgs, cache: &Cache, output: &mut Output<W>) -> Result<(), Failure> {
    // All arguments are parsed before any blob is changed.
    let blobs: Vec<BlobId> =
        args.blobs.iter().map(|text| parse_blob(text, cache.layout())).collect::<Result<_, _>>()?;
    for blob in blobs {
        let change: fn(&Cache, BlobId) -> Result<(), CacheError> =
            if args.remove { Cache::unpin } else { Cache::pin };
        change(cache, blob)?;
        output.line(&Pinned { oid: blob.oid.0, tid: blob.tid, pinned: !args.remove })?;
    }
    Ok(())
}

/// Parses a blob: `OID@TID`, or the path of its file in the cache.
fn parse_blob(text: &str, layout: &Layout) -> Result<BlobId, Failure> {
    let by_id = || {
        let (oid, tid) = text.split_once('@')?;
        Some(BlobId { oid: Oid(oid.parse().ok()?), tid: tid.parse().ok()? })
    };
    let by_path = || {
        let path = Path::new(text);
        let bucket: u64 = path.parent()?.file_name()?.to_str()?.parse().ok()?;
        let blob = BlobId::from_file_name(bucket, path.file_name()?.to_str()?)?;
        // Different texts can name the same path.
        let here = path.parent()?.canonicalize().ok()? == layout.bucket_path(bucket).canonicalize().ok()?;
        here.then_some(blob)
    };
    by_id().or_else(by_path).ok_or_else(|| {
        let root = layout.root().display();
        Failure::Usage(format!(
            "`{text}` is no blob of the cache {root}: name it as `blobferry cache ls` does (OID@TID), or by the path that \
             `blobferry get` prints"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_is_parsed_from_its_id_or_its_cache_path() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path().join("cache")).unwrap();
        let blob = BlobId { oid: Oid(998), tid: Tid(0xabc) };
        assert_eq!(parse_blob(&blob.to_string(), &layout).unwrap(), blob);
        layout.create_bucket(1).unwrap();
        let path = layout.blob_path(blob);
        assert_eq!(parse_blob(path.to_str().unwrap(), &layout).unwrap(), blob);
        let roundabout = layout.root().join("tmp/../1").join(blob.file_name());
        assert_eq!(parse_blob(roundabout.to_str().unwrap(), &layout).unwrap(), blob);
        let elsewhere = dir.path().join("1").join(blob.file_name());
        for text in ["model.bin", "998", "998@abc", elsewhere.to_str().unwrap()] {
            assert!(matches!(parse_blob(text, &layout), Err(Failure::Usage(_))), "{text}");
        }
    }
}
