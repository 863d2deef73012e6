//! The layout of a directory of blobs: the paths of blobs, locks, temporary files and segments.
//!
//! It is the layout of ZEO's blob cache, so that Python and Rust processes can share a directory:
//!
//! ```text
//! .layout                              has the text "zeocache"
//! tmp/                                 files that are not blobs yet
//! tmp/.lock                            locked while a process opens the cache and removes leftovers
//! tmp/.room                            the usage file: bytes in use, and the limit
//! tmp/blobferry-<random>/              one process's unfinished files
//! tmp/partial/<oid>.<tid>.part         a partial download
//! packs/<number>.pack                  a segment: a file of many small blobs
//! packs/index                          the index: hints which segment has which blob
//! <oid mod 997>/.lock                  locked while a process fills this bucket; never deleted
//! <oid mod 997>/<oid div 997>.<tid>.blob
//! ```
//!
//! Servers keep their blobs in the same layout, and shared mode depends on that.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blobferry_protocol::{BlobId, Oid};

use crate::blobdir::access::{Access, check_access, check_locks};
use crate::blobdir::error::LayoutError;

/// The file that names the layout of a directory, and the name of this layout.
const MARKER: &str = ".layout";
const LAYOUT: &str = "zeocache";

/// The name of the index in the directory of segments.
pub const SEGMENT_INDEX: &str = "index";

/// A directory of blobs, and the paths in it. Clones share the paths.
#[derive(Clone, Debug)]
pub struct Layout(Arc<Paths>);

#[derive(Debug)]
struct Paths {
    root: PathBuf,
    tmp: PathBuf,
    segments: PathBuf,
}

impl Layout {
    /// Opens a directory of blobs. Creates it for this user alone (mode 0700) if it is missing.
    ///
    /// Several processes may do so at once.
    ///
    /// # Errors
    /// Returns [`LayoutError::Other`] or [`LayoutError::NotBlobs`] if the directory is used for
    /// something else; [`LayoutError::Foreign`] or [`LayoutError::Writable`] if other users could
    /// change its files; [`LayoutError::Locks`] if its locks do not work; [`LayoutError::Io`] if it
    /// cannot be read or written.
    pub fn open(root: impl AsRef<Path>) -> Result<Layout, LayoutError> {
        let layout = Layout::at(root.as_ref())?;
        let (root, tmp) = (layout.root(), layout.tmp());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(LayoutError::io("create", root))?;
        check_access(root, Access::Own)?;
        // A process that makes a directory of blobs writes the marker first. So if the directory is
        // not empty, and still has no marker afterwards, it is no directory of blobs.
        if !layout.is_marked()? {
            let empty = layout.is_empty()?;
            if !layout.is_marked()? {
                if !empty {
                    return Err(LayoutError::NotBlobs { root: root.to_owned() });
                }
                layout.mark().map_err(LayoutError::io("write a .layout in", root))?;
            }
        }
        check_locks(root, &layout.marker())?;
        create_dir(tmp, 0o700).map_err(LayoutError::io("create", tmp))?;
        Ok(layout)
    }

    /// Opens an existing directory of blobs: a server's, which a client shares.
    ///
    /// # Errors
    /// Returns [`LayoutError::Missing`] if it does not exist; [`LayoutError::Writable`] if all
    /// users can write to it; [`LayoutError::Other`] and [`LayoutError::Io`] as for
    /// [`Layout::open`].
    pub fn open_existing(root: impl AsRef<Path>) -> Result<Layout, LayoutError> {
        let layout = Layout::at(root.as_ref())?;
        match layout.is_marked()? {
            true => check_access(layout.root(), Access::Servers).map(|()| layout),
            false => Err(LayoutError::Missing { root: layout.root().to_owned() }),
        }
    }

    /// Makes the paths below `root` absolute, so that they survive a change of the working
    /// directory.
    fn at(root: &Path) -> Result<Layout, LayoutError> {
        let root = std::path::absolute(root).map_err(LayoutError::io("find", root))?;
        let (tmp, segments) = (root.join("tmp"), root.join("packs"));
        Ok(Layout(Arc::new(Paths { root, tmp, segments })))
    }

    /// Returns the directory itself, as an absolute path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Returns the directory of files that are not blobs yet. It is on the same file system as the
    /// buckets, so a rename can make them blobs.
    #[must_use]
    pub fn tmp(&self) -> &Path {
        &self.0.tmp
    }

    /// Returns the directory of segments, whether it exists or not. ZEO reads only buckets, and
    /// ignores it.
    pub fn segments_dir(&self) -> &Path {
        &self.0.segments
    }

    /// Returns the path of a segment.
    #[must_use]
    pub fn segment_path(&self, number: u32) -> PathBuf {
        self.segments_dir().join(segment_name(number))
    }

    /// Returns whether the directory of segments exists, and is not a link to one.
    pub fn has_segments(&self) -> bool {
        fs::symlink_metadata(self.segments_dir()).is_ok_and(|found| found.is_dir())
    }

    /// Returns the path of a blob's file, whether it exists or not.
    #[must_use]
    pub fn blob_path(&self, blob: BlobId) -> PathBuf {
        let mut path = self.bucket_path(blob.bucket());
        path.push(blob.file_name());
        path
    }

    /// Returns the path of a bucket, whether it exists or not. Buckets are numbered from 0 to
    /// [`BlobId::BUCKETS`] - 1.
    #[must_use]
    pub fn bucket_path(&self, bucket: u64) -> PathBuf {
        self.root().join(bucket.to_string())
    }

    /// Returns the path of a bucket's lock file. A lock file is never deleted.
    #[must_use]
    pub fn lock_path(&self, bucket: u64) -> PathBuf {
        let mut path = self.bucket_path(bucket);
        path.push(".lock");
        path
    }

    /// Creates a bucket. Returns `false` if it existed.
    ///
    /// If the bucket must survive a power cut, the caller syncs [`Layout::root`] afterwards.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn create_bucket(&self, bucket: u64) -> io::Result<bool> {
        create_dir(&self.bucket_path(bucket), 0o755)
    }

    /// Returns each blob's file, bucket by bucket, sorted by name within a bucket. Skips other
    /// names.
    ///
    /// Files may come and go during the iteration. An error of the file system is an item; the
    /// iteration continues with the next bucket.
    pub fn blobs(&self) -> impl Iterator<Item = io::Result<(BlobId, PathBuf)>> + use<> {
        let layout = self.clone();
        (0..BlobId::BUCKETS).flat_map(move |bucket| match layout.blobs_in(bucket) {
            Ok(blobs) => blobs.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    fn blobs_in(&self, bucket: u64) -> io::Result<Vec<(BlobId, PathBuf)>> {
        let entries = match fs::read_dir(self.bucket_path(bucket)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut blobs = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let blob = name.to_str().and_then(|name| BlobId::from_file_name(bucket, name));
            if let Some(blob) = blob
                && entry.file_type()?.is_file()
            {
                blobs.push((blob, entry.path()));
            }
        }
        blobs.sort_unstable();
        Ok(blobs)
    }

    /// Returns the partial downloads.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn partials(&self) -> io::Result<Vec<(BlobId, PathBuf)>> {
        let entries = match fs::read_dir(self.tmp().join("partial")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut partials = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(blob) = entry.file_name().to_str().and_then(partial) {
                partials.push((blob, entry.path()));
            }
        }
        partials.sort_unstable();
        Ok(partials)
    }

    /// Returns the path of the file that names the layout.
    pub fn marker(&self) -> PathBuf {
        self.root().join(MARKER)
    }

    /// Returns whether the marker exists; an error if it names another layout.
    fn is_marked(&self) -> Result<bool, LayoutError> {
        let path = self.marker();
        match fs::read(&path) {
            Ok(found) if found.trim_ascii() == LAYOUT.as_bytes() => Ok(true),
            Ok(found) => {
                let found = String::from_utf8_lossy(found.trim_ascii()).into_owned();
                Err(LayoutError::Other { root: self.root().to_owned(), found })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(LayoutError::io("read", &path)(error)),
        }
    }

    /// Returns whether the directory is empty, but for a marker that another process may be
    /// writing.
    fn is_empty(&self) -> Result<bool, LayoutError> {
        let marker = |name: OsString| name.to_str().is_some_and(|name| name.starts_with(MARKER));
        fs::read_dir(self.root())
            .and_then(|mut entries| {
                entries.try_fold(true, |empty, entry| Ok(empty && marker(entry?.file_name())))
            })
            .map_err(LayoutError::io("list", self.root()))
    }

    /// Writes the marker atomically, also if two processes do so at once.
    fn mark(&self) -> io::Result<()> {
        // All users that may enter the directory may read it, like all files in it.
        let mode = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().prefix(MARKER).permissions(mode).tempfile_in(self.root())?;
        file.write_all(LAYOUT.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(self.marker())?;
        Ok(())
    }
}

/// Returns the name of a segment.
pub fn segment_name(number: u32) -> String {
    format!("{number:08x}.pack")
}

/// Returns the number in a segment's name; `None` for any other name.
pub fn segment_number(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_suffix(".pack")?, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

/// Returns the name of a partial download.
pub fn partial_name(blob: BlobId) -> String {
    format!("{}.{}.part", blob.oid, blob.tid)
}

/// Returns the blob in a partial download's name; `None` for any other name.
fn partial(name: &str) -> Option<BlobId> {
    let (oid, tid) = name.strip_suffix(".part")?.split_once('.')?;
    let blob = BlobId { oid: Oid(oid.parse().ok()?), tid: tid.parse().ok()? };
    (partial_name(blob) == name).then_some(blob)
}

/// Creates a directory. Returns `false` if it existed.
///
/// # Errors
/// Returns the file system's error.
pub fn create_dir(path: &Path, mode: u32) -> io::Result<bool> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::Tid;

    #[test]
    fn a_new_directory_is_private_and_can_be_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        assert!(matches!(Layout::open_existing(&root), Err(LayoutError::Missing { .. })));
        let layout = Layout::open(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read(root.join(".layout")).unwrap(), b"zeocache");
        assert!(layout.tmp().is_dir());
        assert!(Layout::open(&root).is_ok());
        assert!(Layout::open_existing(&root).is_ok());
    }

    #[test]
    fn a_directory_made_by_python_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".layout"), "zeocache\n").unwrap();
        fs::create_dir(dir.path().join("17")).unwrap();
        assert!(Layout::open(dir.path()).is_ok());
    }

    #[test]
    fn a_directory_used_otherwise_is_refused_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let stranger = dir.path().join("thesis.txt");
        fs::write(&stranger, "years of work").unwrap();
        assert!(matches!(Layout::open(dir.path()), Err(LayoutError::NotBlobs { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        fs::write(dir.path().join(".layout"), "bushy").unwrap();
        let refused = Layout::open(dir.path());
        assert!(matches!(refused, Err(LayoutError::Other { found, .. }) if found == "bushy"));
    }

    #[test]
    fn a_writable_directory_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        Layout::open(dir.path()).unwrap();
        let mode = |mode| fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        mode(0o770);
        let refused = Layout::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("mode is 770") && refused.contains("chmod -R go-w"), "{refused}");
        assert!(Layout::open_existing(dir.path()).is_ok(), "a server's group may write to its directory");
        mode(0o777);
        assert!(matches!(Layout::open_existing(dir.path()), Err(LayoutError::Writable { .. })));
        mode(0o700);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(4711), None).unwrap();
            let refused = Layout::open(dir.path()).unwrap_err().to_string();
            assert!(refused.contains("belongs to user 4711"), "{refused}");
        } else {
            println!("skipped: only root can change the owner of a directory");
        }
    }

    #[test]
    fn threads_may_open_a_new_directory_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cache");
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| Layout::open(&root))).collect();
            threads.into_iter().for_each(|thread| assert!(thread.join().unwrap().is_ok()));
        });
        let names = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.count(), 2, "nothing but .layout and tmp is there");
    }

    #[test]
    fn only_exact_names_are_partial_downloads() {
        let blob = BlobId { oid: Oid(7), tid: Tid(0xabc) };
        assert_eq!(partial(&partial_name(blob)), Some(blob));
        for name in ["07.0000000000000abc", "+7.0000000000000abc", "7.0000000000000ABC", "7.abc", "7."] {
            assert_eq!(partial(&format!("{name}.part")), None, "{name}");
        }
    }

    #[test]
    fn blobs_have_the_paths_of_zeo() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let blob = BlobId { oid: Oid(997 * 5 + 3), tid: Tid(0xabc) };
        assert_eq!(layout.blob_path(blob), dir.path().join("3/5.0000000000000abc.blob"));
        assert_eq!(layout.lock_path(blob.bucket()), dir.path().join("3/.lock"));
        assert!(layout.create_bucket(3).unwrap());
        assert!(!layout.create_bucket(3).unwrap());

        let early = BlobId { oid: Oid(0), tid: Tid(1) };
        layout.create_bucket(0).unwrap();
        for path in [layout.blob_path(blob), layout.blob_path(early), layout.lock_path(3)] {
            fs::write(path, "").unwrap();
        }
        fs::write(layout.bucket_path(3).join("5.0000000000000abc.blob.dl"), "").unwrap();
        fs::create_dir(layout.bucket_path(3).join("6.0000000000000abc.blob")).unwrap();
        let found: Vec<_> = layout.blobs().map(Result::unwrap).collect();
        assert_eq!(found, [(early, layout.blob_path(early)), (blob, layout.blob_path(blob))]);
    }
}
