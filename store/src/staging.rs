//! Blobs between arrival and commit: what they are staged into, and the account of the permit they take.
//!
//! Whatever is here cleans up after itself: a [`Staged`] that is dropped removes its file and gives its permit back.

use std::path::{Path, PathBuf};

use blobferry_platform::os::FileStamp;
use blobferry_platform::os::files;
use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_protocol::{BlobInfo, Digest, RequestError};

/// Where the bytes of one blob go while they arrive. Dropped, it leaves nothing.
pub trait Stage: Send {
    /// Takes the next bytes of the blob.
    ///
    /// # Errors
    /// [`Mismatch`](RequestError::Mismatch) for more bytes than were announced, and errors of the disk.
    fn write(&mut self, bytes: &[u8]) -> Result<(), RequestError>;

    /// All bytes are here: checks their number and digest, and syncs them where they are in a file. This blocks.
    ///
    /// # Errors
    /// [`Mismatch`](RequestError::Mismatch), and errors of the disk.
    fn complete(self: Box<Self>, digest: Digest) -> Result<Staged, RequestError>;
}

/// A blob that is complete, checked and as durable as it needs to be, but not part of a commit. Dropped, it is gone.
#[derive(Debug)]
pub struct Staged {
    pub(crate) info: BlobInfo,
    pub(crate) content: Content,
    pub(crate) permit: QuotaPermit,
}

/// Where the bytes of a staged blob are.
#[derive(Debug)]
pub(crate) enum Content {
    Small(Vec<u8>),
    File(StagedFile),
}

impl Staged {
    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// The digest of its bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.info.digest
    }

    /// What its file looks like, where it has one.
    #[must_use]
    pub fn stamp(&self) -> Option<FileStamp> {
        match &self.content {
            Content::Small(_) => None,
            Content::File(file) => std::fs::metadata(file.path()).ok().as_ref().map(FileStamp::from),
        }
    }
}

/// A stage in memory, for blobs that are kept without a file.
pub(crate) struct SmallStage {
    size: u64,
    bytes: Vec<u8>,
    permit: QuotaPermit,
}

impl SmallStage {
    pub(crate) fn new(size: u64, permit: QuotaPermit) -> SmallStage {
        SmallStage { size, bytes: Vec::new(), permit }
    }
}

impl Stage for SmallStage {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        if (self.bytes.len() + bytes.len()) as u64 > self.size {
            return Err(mismatch(format!("it has more than the {} bytes announced", self.size)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn complete(self: Box<Self>, digest: Digest) -> Result<Staged, RequestError> {
        let written = self.bytes.len() as u64;
        if written != self.size {
            return Err(mismatch(format!("{written} bytes of {} arrived", self.size)));
        }
        let found = Digest(*blake3::hash(&self.bytes).as_bytes());
        if found != digest {
            return Err(mismatch(format!("its digest is {found}, announced was {digest}")));
        }
        let info = BlobInfo { size: self.size, digest };
        Ok(Staged { info, content: Content::Small(self.bytes), permit: self.permit })
    }
}

/// What arrived is not what was announced.
pub(crate) fn mismatch(detail: String) -> RequestError {
    RequestError::Mismatch { detail }
}

/// Gives staged files their names in one directory.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: Arc<Path>,
    next: AtomicU64,
}

impl Staging {
    pub(crate) fn new(dir: &Path) -> Staging {
        Staging { dir: dir.into(), next: AtomicU64::new(0) }
    }

    /// A name that no file has, and no client can say: it is hidden, and hidden names are refused.
    pub(crate) fn reserve(&self) -> StagedFile {
        StagedFile { dir: self.dir.clone(), number: self.next.fetch_add(1, Ordering::Relaxed), kept: false }
    }
}

/// A staged file, not held open: there may be more of them than descriptors. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct StagedFile {
    dir: Arc<Path>,
    number: u64,
    kept: bool,
}

impl StagedFile {
    pub(crate) fn name(&self) -> String {
        format!(".staged-{:016x}", self.number)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(self.name())
    }

    /// Gives the file its final name.
    pub(crate) fn persist(mut self, to: &Path) -> std::io::Result<()> {
        files::rename(&self.path(), to)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.kept {
            // Whatever stays behind is removed when the store is opened the next time.
            let _ = std::fs::remove_file(self.path());
        }
    }
}

/// The account of all staged bytes of a store, and of who is at it.
#[derive(Clone, Debug)]
pub(crate) struct Quota {
    taken: Arc<AtomicU64>,
    uploads: Arc<AtomicU64>,
    limit: u64,
}

impl Quota {
    pub(crate) fn new(limit: u64) -> Quota {
        Quota { taken: Arc::default(), uploads: Arc::default(), limit }
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Blobs that are being staged.
    pub(crate) fn uploads(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed)
    }

    /// Counts a stage as long as it is there.
    pub(crate) fn count(&self, stage: Box<dyn Stage>) -> Box<dyn Stage> {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        Box::new(Counted { stage, _one: One(self.uploads.clone()) })
    }

    /// Takes permit for so many bytes, given back when the [`QuotaPermit`] is dropped.
    pub(crate) fn take(&self, bytes: u64) -> Result<QuotaPermit, RequestError> {
        let fits = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(QuotaPermit { quota: self.clone(), bytes }),
            Err(taken) => Err(RequestError::Limit {
                what: "bytes staged by open transactions".to_owned(),
                limit: self.limit,
                actual: taken.saturating_add(bytes),
            }),
        }
    }
}

/// A stage that is counted.
struct Counted {
    stage: Box<dyn Stage>,
    _one: One,
}

impl Stage for Counted {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        self.stage.write(bytes)
    }

    fn complete(self: Box<Self>, digest: Digest) -> Result<Staged, RequestError> {
        self.stage.complete(digest)
    }
}

/// One of those that are counted.
struct One(Arc<AtomicU64>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// So many staged bytes.
#[derive(Debug)]
pub(crate) struct QuotaPermit {
    quota: Quota,
    bytes: u64,
}

impl QuotaPermit {
    /// Makes one of two: what `other` has taken is from now on taken by this.
    pub(crate) fn join(&mut self, mut other: QuotaPermit) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        self.quota.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_once_and_never_exceeded() {
        let quota = Quota::new(10);
        let mut all = quota.take(4).unwrap();
        all.join(quota.take(5).unwrap());
        assert!(matches!(quota.take(2), Err(RequestError::Limit { limit: 10, actual: 11, .. })));
        assert!(quota.take(u64::MAX).is_err());
        drop(all);
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn a_stage_is_counted_until_it_is_complete_or_dropped() {
        let quota = Quota::new(100);
        let stage = || quota.count(Box::new(SmallStage::new(0, quota.take(0).unwrap())));
        let (first, second) = (stage(), stage());
        assert_eq!(quota.uploads(), 2);
        let staged = first.complete(Digest(*blake3::hash(b"").as_bytes())).unwrap();
        assert_eq!(quota.uploads(), 1);
        drop((second, staged));
        assert_eq!(quota.uploads(), 0);
    }

    #[test]
    fn a_small_stage_takes_exactly_what_was_announced() {
        let stage = |size| Box::new(SmallStage::new(size, Quota::new(100).take(size).unwrap()));
        let digest = Digest(*blake3::hash(b"abc").as_bytes());
        let mut right = stage(3);
        right.write(b"ab").unwrap();
        assert!(right.write(b"cd").is_err());
        right.write(b"c").unwrap();
        assert_eq!(right.complete(digest).unwrap().digest(), digest);
        assert!(stage(3).complete(digest).is_err());
        let mut wrong = stage(3);
        wrong.write(b"abd").unwrap();
        assert!(matches!(wrong.complete(digest), Err(RequestError::Mismatch { .. })));
    }
}
