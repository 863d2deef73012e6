//! Blobs between arrival and commit: stages that take their bytes, and the quota that counts them.
//!
//! Everything here cleans up after itself. Dropping a [`Staged`] removes its file and returns its
//! part of the quota.

use std::io;
use std::path::{Path, PathBuf};

use blobferry_platform::os::{FileStamp, files};
use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_protocol::{BlobInfo, Digest, RequestError};

/// Takes the bytes of one blob while they arrive. Dropping it discards them.
pub trait Stage: Send {
    /// Appends bytes to the blob.
    ///
    /// # Errors
    /// [`Mismatch`](RequestError::Mismatch) for more bytes than were announced, and errors of the
    /// disk.
    fn write(&mut self, bytes: &[u8]) -> Result<(), RequestError>;

    /// Completes the blob: checks its size and digest, and syncs its file if it has one. Blocks.
    ///
    /// # Errors
    /// [`Mismatch`](RequestError::Mismatch), and errors of the disk.
    fn complete(self: Box<Self>, digest: Digest) -> Result<Staged, RequestError>;
}

/// A blob that is complete, checked and as durable as its store needs, but not committed.
///
/// Dropping it removes it. It can only be given to the store whose [`stage`](crate::Store::stage)
/// it comes from. A store outside of this crate makes one in [`Stage::complete`], with
/// [`from_bytes`](Staged::from_bytes) or [`from_file`](Staged::from_file), and takes it apart in
/// [`Store::store_blob`](crate::Store::store_blob), with [`into_content`](Staged::into_content).
#[derive(Debug)]
pub struct Staged {
    pub(crate) info: BlobInfo,
    pub(crate) content: StagedContent,
    /// `None` for a blob that another store has staged.
    pub(crate) permit: Option<QuotaPermit>,
}

/// The bytes of a staged blob.
#[derive(Debug)]
#[non_exhaustive]
pub enum StagedContent {
    /// In memory.
    Bytes(Vec<u8>),
    /// In a file.
    File(StagedFile),
}

impl Staged {
    /// Makes a staged blob of bytes in memory. The caller has checked that this is their digest.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>, digest: Digest) -> Staged {
        let info = BlobInfo { size: bytes.len() as u64, digest };
        Staged { info, content: StagedContent::Bytes(bytes), permit: None }
    }

    /// Makes a staged blob of a file. The caller has checked the file's size and digest, and has
    /// synced it if its store promises durability.
    ///
    /// The file is removed when the blob is dropped, unless it is
    /// [persisted](StagedFile::persist) first.
    #[must_use]
    pub fn from_file(path: impl Into<PathBuf>, info: BlobInfo) -> Staged {
        Staged { info, content: StagedContent::File(StagedFile::at(path.into())), permit: None }
    }

    /// Returns its size and digest.
    #[must_use]
    pub fn info(&self) -> BlobInfo {
        self.info
    }

    /// Returns its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// Returns the digest of its bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.info.digest
    }

    /// Returns the stamp of its file; `None` if it has none or it cannot be read.
    #[must_use]
    pub fn stamp(&self) -> Option<FileStamp> {
        match &self.content {
            StagedContent::Bytes(_) => None,
            StagedContent::File(file) => std::fs::metadata(file.path()).ok().as_ref().map(FileStamp::from),
        }
    }

    /// Takes the bytes, or the file that has them, for a commit.
    #[must_use]
    pub fn into_content(self) -> StagedContent {
        self.content
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
        Ok(Staged { permit: Some(self.permit), ..Staged::from_bytes(self.bytes, digest) })
    }
}

/// Returns the error for bytes that are not the ones announced.
pub(crate) fn mismatch(detail: String) -> RequestError {
    RequestError::Mismatch { detail }
}

/// A staged blob's file. It is not held open, since a process may stage more files than it may have
/// descriptors. Dropping it removes the file.
#[derive(Debug)]
pub struct StagedFile {
    location: Location,
    persisted: bool,
}

#[derive(Debug)]
enum Location {
    Path(PathBuf),
    /// A file that a store has named itself: 24 bytes, as a transaction may have very many.
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "only SQLite's store names files"))]
    Numbered {
        dir: Arc<Path>,
        number: u64,
    },
}

impl StagedFile {
    pub(crate) fn at(path: PathBuf) -> StagedFile {
        StagedFile { location: Location::Path(path), persisted: false }
    }

    /// A file whose name is hidden, since clients that share the directory cannot name hidden
    /// files.
    #[cfg(feature = "sqlite")]
    pub(crate) fn numbered(dir: Arc<Path>, number: u64) -> StagedFile {
        StagedFile { location: Location::Numbered { dir, number }, persisted: false }
    }

    /// Returns where the file is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match &self.location {
            Location::Path(path) => path.clone(),
            Location::Numbered { dir, number } => dir.join(format!(".staged-{number:016x}")),
        }
    }

    /// Renames the file to its final path, which must be on the same file system. The new name is
    /// not synced.
    ///
    /// # Errors
    /// Those of the file system. The staged file is removed then.
    pub fn persist(mut self, to: &Path) -> io::Result<()> {
        files::rename(&self.path(), to)?;
        self.persisted = true;
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.persisted {
            // If this fails, the next open of the store removes the file.
            let _ = std::fs::remove_file(self.path());
        }
    }
}

/// Counts the staged bytes and the uploads of one store.
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

    /// Returns the staged bytes.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns how many blobs are being staged.
    pub(crate) fn uploads(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed)
    }

    /// Counts a stage until it is completed or dropped.
    pub(crate) fn count(&self, stage: Box<dyn Stage>) -> Box<dyn Stage> {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        Box::new(CountedStage { stage, _count: UploadCount(self.uploads.clone()) })
    }

    /// Takes bytes out of the quota, until the [`QuotaPermit`] is dropped.
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

    /// Returns the permit of a blob that was staged under this quota.
    ///
    /// # Errors
    /// [`Failed`](RequestError::Failed) if another store has staged the blob.
    pub(crate) fn claim(&self, permit: Option<QuotaPermit>) -> Result<QuotaPermit, RequestError> {
        permit.filter(|permit| Arc::ptr_eq(&permit.quota.taken, &self.taken)).ok_or_else(|| {
            RequestError::Failed { detail: "the blob was staged by another store: stage it here".to_owned() }
        })
    }
}

/// A stage that counts as an upload.
struct CountedStage {
    stage: Box<dyn Stage>,
    _count: UploadCount,
}

impl Stage for CountedStage {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        self.stage.write(bytes)
    }

    fn complete(self: Box<Self>, digest: Digest) -> Result<Staged, RequestError> {
        self.stage.complete(digest)
    }
}

/// One upload. Dropping it ends the count.
struct UploadCount(Arc<AtomicU64>);

impl Drop for UploadCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A number of staged bytes, taken out of a quota until it is dropped.
#[derive(Debug)]
pub(crate) struct QuotaPermit {
    quota: Quota,
    bytes: u64,
}

impl QuotaPermit {
    /// Adds another permit's bytes to this one.
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
    fn a_quota_is_never_exceeded_and_returned_once() {
        let quota = Quota::new(10);
        let mut all = quota.take(4).unwrap();
        all.join(quota.take(5).unwrap());
        assert!(matches!(quota.take(2), Err(RequestError::Limit { limit: 10, actual: 11, .. })));
        assert!(quota.take(u64::MAX).is_err());
        drop(all);
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn a_stage_is_counted_until_completed_or_dropped() {
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

    #[test]
    fn a_quota_takes_no_blob_of_another_store() {
        let (here, elsewhere) = (Quota::new(10), Quota::new(10));
        assert!(here.claim(Some(here.take(1).unwrap())).is_ok());
        assert!(matches!(here.claim(Some(elsewhere.take(1).unwrap())), Err(RequestError::Failed { .. })));
        assert!(here.claim(Staged::from_bytes(vec![], Digest([0; 32])).permit).is_err());
        assert_eq!((here.taken(), elsewhere.taken()), (0, 0));
    }

    #[test]
    fn a_staged_file_is_removed_unless_persisted() {
        let dir = tempfile::tempdir().unwrap();
        let (staged, kept) = (dir.path().join("staged"), dir.path().join("kept"));
        let stage = || {
            std::fs::write(&staged, b"blob").unwrap();
            Staged::from_file(&staged, BlobInfo { size: 4, digest: Digest([7; 32]) })
        };
        drop(stage());
        assert!(!staged.exists());
        let StagedContent::File(file) = stage().into_content() else { panic!("it is in a file") };
        file.persist(&kept).unwrap();
        assert!(!staged.exists());
        assert_eq!(std::fs::read(kept).unwrap(), b"blob");
    }
}
