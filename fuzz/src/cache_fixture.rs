//! A cache directory filled by a fuzz target, and what a cache may do with each entry.
//!
//! The directory is in memory if `/dev/shm` exists. The rules are written independently of the
//! cache's own code:
//!
//! * A blob is a regular file `<oid mod 997>/<oid div 997>.<tid, 16 digits>.blob`. The cache may
//!   remove it.
//! * `tmp/partial/<oid>.<tid>.part` and directories `tmp/blobferry-*` are leftovers of downloads
//!   and of processes. The cache may remove them.
//! * Every other entry stays, with its bytes. This holds above all for lock files.
//! * A served blob is a regular file. Its bytes have the digest of its stamp, unless the stamp is
//!   of this boot or of a synced file, or is missing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use blobferry_cache::{Cache, CacheError, CachedBlob, Claim, Download, SmallClaim};
use blobferry_protocol::{BlobId, Digest};
use rustix::fs::{CWD, Mode, XattrFlags};
use tempfile::TempDir;

/// An entry that the fixture puts into the cache directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Vec<u8>),
    Dir,
    /// A symbolic link to a file outside the cache.
    Link,
    Pipe,
}

/// The stamp of a blob file: it says whether the cache may trust the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    None,
    /// Written in this boot, or the file was synced.
    Trusted(Vec<u8>),
    /// Written in another boot; the bytes must have this digest.
    Unproven(Vec<u8>, Digest),
    /// Of an unknown format.
    Unknown(Vec<u8>),
}

/// A cache directory and the entries that were put into it.
pub(crate) struct CacheFixture {
    dir: TempDir,
    entries: BTreeMap<PathBuf, Entry>,
    stamps: BTreeMap<PathBuf, Stamp>,
    /// The bytes of the file that links lead to.
    outside: Vec<u8>,
}

impl CacheFixture {
    pub(crate) fn new() -> CacheFixture {
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let dir = dir.expect("a directory of its own");
        let outside = b"not in the cache".to_vec();
        fs::create_dir(dir.path().join("cache")).unwrap();
        fs::set_permissions(dir.path().join("cache"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(dir.path().join("outside"), &outside).unwrap();
        CacheFixture { dir, entries: BTreeMap::new(), stamps: BTreeMap::new(), outside }
    }

    /// Returns the path of the cache directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Creates an entry and its parent directories. Returns `false` if that is impossible.
    pub(crate) fn put(&mut self, at: &Path, entry: Entry) -> bool {
        let path = self.root().join(at);
        if path.symlink_metadata().is_ok() || at.as_os_str().len() > 2000 {
            return false;
        }
        for parent in at.ancestors().skip(1).filter(|parent| *parent != Path::new("")) {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Dir);
        }
        if path.parent().is_none_or(|parent| fs::create_dir_all(parent).is_err()) {
            self.entries.retain(|at, _| self.dir.path().join("cache").join(at).symlink_metadata().is_ok());
            return false;
        }
        let put = match &entry {
            Entry::File(bytes) => fs::write(&path, bytes).is_ok(),
            Entry::Dir => fs::create_dir(&path).is_ok(),
            Entry::Link => symlink(self.dir.path().join("outside"), &path).is_ok(),
            Entry::Pipe => rustix::fs::mkfifoat(CWD, &path, Mode::RWXU).is_ok(),
        };
        if put {
            self.entries.insert(at.to_owned(), entry);
        }
        put
    }

    /// Creates a valid usage file. Without one, the cache first scans the whole directory.
    pub(crate) fn put_account(&mut self) {
        self.put(Path::new("tmp/.room"), Entry::File(account([u64::MAX, 1 << 20, 1], 0, this_boot())));
    }

    /// Sets an extended attribute of a file. Returns `false` if the file system has none.
    pub(crate) fn mark(&mut self, at: &Path, name: &str, value: &[u8]) -> bool {
        let file = File::open(self.root().join(at)).unwrap();
        rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()).is_ok()
    }

    /// Stamps a blob file.
    pub(crate) fn stamp(&mut self, at: &Path, stamp: Stamp) {
        let set = match &stamp {
            Stamp::None => true,
            Stamp::Trusted(value) | Stamp::Unproven(value, _) | Stamp::Unknown(value) => {
                self.mark(at, "user.blobferry", value)
            }
        };
        self.stamps.insert(at.to_owned(), if set { stamp } else { Stamp::None });
    }

    /// Checks that every entry which the cache must leave alone is unchanged.
    pub(crate) fn check(&self) {
        let root = self.root();
        for (at, entry) in self.entries.iter().filter(|(at, entry)| !may_change(at, entry)) {
            let path = root.join(at);
            let found = path.symlink_metadata().unwrap_or_else(|error| panic!("{at:?} was removed: {error}"));
            let same = match entry {
                Entry::File(bytes) => found.is_file() && fs::read(&path).is_ok_and(|found| found == *bytes),
                Entry::Dir => found.is_dir(),
                Entry::Link => found.is_symlink(),
                Entry::Pipe => !found.is_file() && !found.is_dir() && !found.is_symlink(),
            };
            assert!(same, "{at:?} was changed");
        }
        assert_eq!(fs::read(self.dir.path().join("outside")).unwrap(), self.outside, "a link was followed");
    }

    /// Checks that no entry was changed or removed.
    pub(crate) fn check_untouched(&self) {
        self.check();
        for at in self.entries.keys() {
            assert!(self.root().join(at).symlink_metadata().is_ok(), "{at:?} was removed");
        }
    }

    /// Checks a served blob: it has its true bytes, or bytes of the fixture that the stamp allows.
    pub(crate) fn check_served(&self, cached: &CachedBlob) {
        let at = path_of(cached.blob());
        assert_eq!(cached.path(), self.root().join(&at));
        let metadata = cached.file().metadata().unwrap();
        assert!(metadata.is_file(), "{at:?} is no regular file");
        assert_eq!(metadata.len(), cached.size());
        let mut bytes = Vec::new();
        cached.file().read_to_end(&mut bytes).unwrap();
        if bytes == expected_bytes(cached.blob()) {
            return;
        }
        match self.entries.get(&at) {
            Some(Entry::File(put)) => assert_eq!(&bytes, put, "neither the blob nor the entry"),
            Some(Entry::Link) => assert_eq!(bytes, self.outside),
            other => panic!("{at:?} has other bytes than were put there: {other:?}"),
        }
        match self.stamps.get(&at).unwrap_or(&Stamp::None) {
            Stamp::None | Stamp::Trusted(_) => {}
            Stamp::Unproven(_, digest) => assert_eq!(*digest, digest_of(&bytes), "{at:?} is damaged"),
            Stamp::Unknown(_) => panic!("{at:?} has a stamp of an unknown format"),
        }
    }

    /// Claims a blob, and downloads it if it is missing. That may fail only if a foreign entry
    /// blocks the blob or the cache is full.
    pub(crate) fn fetch(&self, cache: &Cache, blob: BlobId, resume: bool) {
        match cache.claim(blob) {
            Ok(Claim::Hit(cached)) => self.check_served(&cached),
            Ok(Claim::Download(download)) => match finish(download, resume) {
                Ok(cached) => {
                    assert_eq!(cached.size(), expected_bytes(blob).len() as u64);
                    self.check_served(&cached);
                }
                Err(error) => self.check_refusal(blob, &error),
            },
            Err(error) => self.check_refusal(blob, &error),
        }
    }

    /// Claims a small blob's bytes, and keeps them if they are missing.
    pub(crate) fn load(&self, cache: &Cache, blob: BlobId) {
        let expected_bytes = expected_bytes(blob);
        match cache.claim_small(blob) {
            Ok(SmallClaim::Bytes(bytes)) => assert_eq!(bytes, expected_bytes, "a segment has the true bytes"),
            Ok(SmallClaim::File(cached)) => self.check_served(&cached),
            Ok(SmallClaim::Download(download)) => {
                let digest = digest_of(&expected_bytes);
                download
                    .finish_small(&expected_bytes.into(), digest, |write| write())
                    .expect("it is small, and right");
            }
            Err(error) => self.check_refusal(blob, &error),
        }
    }

    /// Checks that an error is justified: an entry blocks the blob, or the cache is full.
    fn check_refusal(&self, blob: BlobId, error: &CacheError) {
        let full = matches!(error, CacheError::Write { .. } | CacheError::Quota(_));
        let at = path_of(blob);
        let in_the_way = |at: &Path| !matches!(self.entries.get(at), None | Some(Entry::File(_)));
        let lock = at.with_file_name(".lock");
        let bucket = at.parent().map(Path::to_owned).unwrap_or_default();
        let no_bucket = self.entries.get(&bucket).is_some_and(|entry| *entry != Entry::Dir);
        let blocked = in_the_way(&at) || in_the_way(&lock) || no_bucket;
        assert!(full || blocked, "{blob} cannot be loaded: {error}");
    }
}

fn finish(mut download: Download, resume: bool) -> Result<CachedBlob, CacheError> {
    let expected_bytes = expected_bytes(download.blob());
    if resume {
        download.resume()?;
    }
    // The resumed part may belong to other content; then the download starts again.
    for _ in 0..2 {
        let from = download.written();
        let rest = expected_bytes.get(from as usize..).unwrap_or_default();
        let started = download.start(from, expected_bytes.len() as u64).and_then(|()| download.write(rest));
        match started.and_then(|()| download.finish(digest_of(&expected_bytes))) {
            Err(CacheError::Stale { .. }) => {}
            done => return done,
        }
    }
    panic!("what is begun anew is not stale")
}

/// Returns the true bytes of a blob.
pub(crate) fn expected_bytes(blob: BlobId) -> Vec<u8> {
    let size = (blob.oid.0 ^ blob.tid.0) % 5 * 9;
    (0..size).map(|n| (n * 3).wrapping_add(blob.oid.0) as u8).collect()
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// Encodes a usage file: limit, used bytes and recounts, then the doubt, the boot and a checksum.
pub(crate) fn account(numbers: [u64; 3], doubt: u8, boot: Option<[u8; 16]>) -> Vec<u8> {
    let mut account = b"room-001".to_vec();
    for number in numbers.into_iter().chain([u64::from(doubt)]) {
        account.extend(number.to_le_bytes());
    }
    account.extend(boot.unwrap_or([0; 16]));
    let digest = digest_of(&account);
    account.extend_from_slice(&digest.0[..8]);
    account
}

/// Returns the id of the current boot, as stamps and usage files store it.
pub(crate) fn this_boot() -> Option<[u8; 16]> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&uuid.trim().replace('-', ""), 16).ok().map(u128::to_be_bytes)
}

/// Returns the path of a blob's file.
pub(crate) fn path_of(blob: BlobId) -> PathBuf {
    let (oid, tid) = (blob.oid.0, blob.tid.0);
    PathBuf::from(format!("{}/{}.{tid:016x}.blob", oid % 997, oid / 997))
}

/// Returns the path of a blob's partial download.
pub(crate) fn partial_path_of(blob: BlobId) -> PathBuf {
    PathBuf::from(format!("tmp/partial/{}.{:016x}.part", blob.oid.0, blob.tid.0))
}

/// Returns whether the cache may change or remove an entry.
fn may_change(at: &Path, entry: &Entry) -> bool {
    let names: Vec<&[u8]> = at.iter().map(|name| name.as_bytes()).collect();
    match names[..] {
        [b"tmp", b".room"] => *entry != Entry::Dir,
        [b"tmp", b"partial", part] => *entry != Entry::Dir && numbers(part, b".part").is_some(),
        [b"packs", name] => *entry != Entry::Dir && (name == b"index" || name.ends_with(b".pack")),
        [b"tmp", scratch, ..] => scratch.starts_with(b"blobferry-"),
        // If another kind of entry has the blob's name, a download replaces it.
        [bucket, blob] => {
            let bucket = number(bucket).is_some_and(|bucket| bucket < 997);
            bucket && *entry != Entry::Dir && numbers(blob, b".blob").is_some()
        }
        _ => false,
    }
}

/// Parses a number without leading zeros, a dot, and sixteen lower-case hexadecimal digits.
fn numbers(name: &[u8], end: &[u8]) -> Option<u64> {
    let name = name.strip_suffix(end)?;
    let dot = name.len().checked_sub(17)?;
    let (first, tid) = (number(&name[..dot])?, name[dot..].strip_prefix(b".")?);
    tid.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')).then_some(first)
}

fn number(digits: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == digits).then_some(number)
}
