//! A cache's directory that somebody has put things into, on a file system in memory where there is one; and what a cache
//! may do with each of them.
//!
//! The rules are said here a second time, in other words than the cache's own:
//!
//! * A blob's file is a regular file `<oid mod 997>/<oid div 997>.<tid, 16 digits>.blob`. A cache may remove it.
//! * `tmp/partial/<oid>.<tid>.part` and directories `tmp/blobferry-*` are what is left of downloads and of processes. A
//!   cache may remove them.
//! * Everything else stays, with its bytes; lock files above all.
//! * What is handed out as a blob is a regular file. Its bytes have the digest of its stamp, unless that is of this boot,
//!   or of a file that was synced; or it has none.

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

/// What somebody puts somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Vec<u8>),
    Dir,
    /// A symbolic link to a file outside of the cache.
    Link,
    Pipe,
}

/// What tells whether the bytes under a blob's name are to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    None,
    /// Of this boot, or of a file that was synced.
    Trusted(Vec<u8>),
    /// Of another boot, with this digest.
    Unproven(Vec<u8>, Digest),
    /// Of a kind that nobody knows.
    Unknown(Vec<u8>),
}

/// The directory, and what was put there.
pub(crate) struct CacheFixture {
    dir: TempDir,
    things: BTreeMap<PathBuf, Entry>,
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
        CacheFixture { dir, things: BTreeMap::new(), stamps: BTreeMap::new(), outside }
    }

    /// The cache's directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Puts something somewhere in the cache, with the directories that it needs. `false` where that can not be.
    pub(crate) fn put(&mut self, at: &Path, thing: Entry) -> bool {
        let path = self.root().join(at);
        if path.symlink_metadata().is_ok() || at.as_os_str().len() > 2000 {
            return false;
        }
        for parent in at.ancestors().skip(1).filter(|parent| *parent != Path::new("")) {
            self.things.entry(parent.to_owned()).or_insert(Entry::Dir);
        }
        if path.parent().is_none_or(|parent| fs::create_dir_all(parent).is_err()) {
            self.things.retain(|at, _| self.dir.path().join("cache").join(at).symlink_metadata().is_ok());
            return false;
        }
        let put = match &thing {
            Entry::File(bytes) => fs::write(&path, bytes).is_ok(),
            Entry::Dir => fs::create_dir(&path).is_ok(),
            Entry::Link => symlink(self.dir.path().join("outside"), &path).is_ok(),
            Entry::Pipe => rustix::fs::mkfifoat(CWD, &path, Mode::RWXU).is_ok(),
        };
        if put {
            self.things.insert(at.to_owned(), thing);
        }
        put
    }

    /// Puts an account of the cache's room there that is believed: without one, all of the directory is counted first.
    pub(crate) fn put_account(&mut self) {
        self.put(Path::new("tmp/.room"), Entry::File(account([u64::MAX, 1 << 20, 1], 0, this_boot())));
    }

    /// Gives a file the attribute of that name; `false` where files have none.
    pub(crate) fn mark(&mut self, at: &Path, name: &str, value: &[u8]) -> bool {
        let file = File::open(self.root().join(at)).unwrap();
        rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()).is_ok()
    }

    /// Stamps a blob's file.
    pub(crate) fn stamp(&mut self, at: &Path, stamp: Stamp) {
        let set = match &stamp {
            Stamp::None => true,
            Stamp::Trusted(value) | Stamp::Unproven(value, _) | Stamp::Unknown(value) => {
                self.mark(at, "user.blobferry", value)
            }
        };
        self.stamps.insert(at.to_owned(), if set { stamp } else { Stamp::None });
    }

    /// Everything that a cache has no business with is as it was.
    pub(crate) fn check(&self) {
        let root = self.root();
        for (at, thing) in self.things.iter().filter(|(at, thing)| !may_change(at, thing)) {
            let path = root.join(at);
            let found = path.symlink_metadata().unwrap_or_else(|error| panic!("{at:?} was removed: {error}"));
            let same = match thing {
                Entry::File(bytes) => found.is_file() && fs::read(&path).is_ok_and(|found| found == *bytes),
                Entry::Dir => found.is_dir(),
                Entry::Link => found.is_symlink(),
                Entry::Pipe => !found.is_file() && !found.is_dir() && !found.is_symlink(),
            };
            assert!(same, "{at:?} was changed");
        }
        assert_eq!(fs::read(self.dir.path().join("outside")).unwrap(), self.outside, "a link was followed");
    }

    /// Nothing has changed at all.
    pub(crate) fn check_untouched(&self) {
        self.check();
        for at in self.things.keys() {
            assert!(self.root().join(at).symlink_metadata().is_ok(), "{at:?} was removed");
        }
    }

    /// What was handed out for a blob: its bytes, or what was put there and may be believed.
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
        match self.things.get(&at) {
            Some(Entry::File(put)) => assert_eq!(&bytes, put, "nobody has written that"),
            Some(Entry::Link) => assert_eq!(bytes, self.outside),
            other => panic!("{at:?} was made up: {other:?}"),
        }
        match self.stamps.get(&at).unwrap_or(&Stamp::None) {
            Stamp::None | Stamp::Trusted(_) => {}
            Stamp::Unproven(_, digest) => assert_eq!(*digest, digest_of(&bytes), "{at:?} is damaged"),
            Stamp::Unknown(_) => panic!("{at:?} has a stamp that nobody knows"),
        }
    }

    /// Claims a blob, and downloads it where it is not there: a blob can be had whatever is in the directory, unless
    /// something is in its way that is not the cache's.
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

    /// Claims a blob's bytes, and keeps them where they are not there.
    pub(crate) fn load(&self, cache: &Cache, blob: BlobId) {
        let expected_bytes = expected_bytes(blob);
        match cache.claim_small(blob) {
            Ok(SmallClaim::Bytes(bytes)) => assert_eq!(bytes, expected_bytes, "only that was ever packed"),
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

    /// Is there a reason why this blob can not be had? Something is in its way, or there is no room.
    fn check_refusal(&self, blob: BlobId, error: &CacheError) {
        let full = matches!(error, CacheError::Write { .. } | CacheError::Quota(_));
        let at = path_of(blob);
        let in_the_way = |at: &Path| !matches!(self.things.get(at), None | Some(Entry::File(_)));
        let lock = at.with_file_name(".lock");
        let bucket = at.parent().map(Path::to_owned).unwrap_or_default();
        let no_bucket = self.things.get(&bucket).is_some_and(|thing| *thing != Entry::Dir);
        let blocked = in_the_way(&at) || in_the_way(&lock) || no_bucket;
        assert!(full || blocked, "{blob} can not be had: {error}");
    }
}

fn finish(mut download: Download, resume: bool) -> Result<CachedBlob, CacheError> {
    let expected_bytes = expected_bytes(download.blob());
    if resume {
        download.resume()?;
    }
    // What was found may be something else: then it is asked for anew.
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

/// The bytes that a blob has, wherever it was not damaged.
pub(crate) fn expected_bytes(blob: BlobId) -> Vec<u8> {
    let size = (blob.oid.0 ^ blob.tid.0) % 5 * 9;
    (0..size).map(|n| (n * 3).wrapping_add(blob.oid.0) as u8).collect()
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// An account of a cache's room: limit, used, recounts; then the doubt, the boot, and a checksum.
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

/// The boot that is running, as stamps and accounts name it.
pub(crate) fn this_boot() -> Option<[u8; 16]> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&uuid.trim().replace('-', ""), 16).ok().map(u128::to_be_bytes)
}

/// Where a blob's file is.
pub(crate) fn path_of(blob: BlobId) -> PathBuf {
    let (oid, tid) = (blob.oid.0, blob.tid.0);
    PathBuf::from(format!("{}/{}.{tid:016x}.blob", oid % 997, oid / 997))
}

/// Where the beginning of a blob is.
pub(crate) fn partial_path_of(blob: BlobId) -> PathBuf {
    PathBuf::from(format!("tmp/partial/{}.{:016x}.part", blob.oid.0, blob.tid.0))
}

/// May a cache change or remove this?
fn may_change(at: &Path, thing: &Entry) -> bool {
    let names: Vec<&[u8]> = at.iter().map(|name| name.as_bytes()).collect();
    match names[..] {
        [b"tmp", b".room"] => *thing != Entry::Dir,
        [b"tmp", b"partial", part] => *thing != Entry::Dir && numbers(part, b".part").is_some(),
        [b"packs", name] => *thing != Entry::Dir && (name == b"index" || name.ends_with(b".pack")),
        [b"tmp", scratch, ..] => scratch.starts_with(b"blobferry-"),
        // Where something else than a file is, the blob takes its place when it is downloaded.
        [bucket, blob] => {
            let bucket = number(bucket).is_some_and(|bucket| bucket < 997);
            bucket && *thing != Entry::Dir && numbers(blob, b".blob").is_some()
        }
        _ => false,
    }
}

/// A number without needless digits, a dot, and sixteen lower-case hexadecimal digits.
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
