//! The directory of blobs: where a blob's file is, and what else is in there.
//!
//! It is the layout of ZEO's own blob cache, so that Python and Rust processes can share one directory:
//!
//! ```text
//! .layout                              says "zeocache"
//! tmp/                                 what is not a blob yet
//! tmp/.lock                            locked while a process comes, and sweeps up after dead ones
//! tmp/.room                            how many bytes all of this takes, and may take
//! tmp/blobferry-<random>/              a process's own unfinished files
//! tmp/partial/<oid>.<tid>.part         a download that somebody can go on with
//! packs/<number>.pack                  small blobs, many in a file
//! packs/index                          hints where which of them is
//! <oid mod 997>/.lock                  locked while somebody fills this bucket; never deleted
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

/// The file that says which layout a directory has, and what it says.
const MARKER: &str = ".layout";
const LAYOUT: &str = "zeocache";

/// The name of the index in the directory of segments.
pub const SEGMENT_INDEX: &str = "index";

/// A directory of blobs, and the paths in it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Layout(Arc<Paths>);

#[derive(Debug)]
struct Paths {
    root: PathBuf,
    tmp: PathBuf,
    segments: PathBuf,
}

impl Layout {
    /// Opens a directory of blobs, and creates it where there is none, for its owner alone (mode 0700).
    ///
    /// Several processes may do so at once.
    ///
    /// # Errors
    /// [`LayoutError::Other`] and [`LayoutError::NotBlobs`] where the directory is used for something else;
    /// [`LayoutError::Foreign`] and [`LayoutError::Writable`] where others could change what is in it;
    /// [`LayoutError::Locks`] where its locks do not work; [`LayoutError::Io`] where it can not be read or written.
    pub fn open(root: impl AsRef<Path>) -> Result<Layout, LayoutError> {
        let layout = Layout::at(root.as_ref())?;
        let (root, tmp) = (layout.root(), layout.tmp());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(LayoutError::io("create", root))?;
        check_access(root, Access::Own)?;
        // Whoever makes a directory of blobs writes the marker before anything else. So a directory that has
        // something in it, and no marker when it is looked at after that, is no directory of blobs.
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

    /// Opens a directory of blobs that somebody else has made: a server's, which a client shares.
    ///
    /// # Errors
    /// [`LayoutError::Missing`] where it is not there; [`LayoutError::Writable`] where everybody can write to it;
    /// [`LayoutError::Other`] and [`LayoutError::Io`] as for [`Layout::open`].
    pub fn open_existing(root: impl AsRef<Path>) -> Result<Layout, LayoutError> {
        let layout = Layout::at(root.as_ref())?;
        match layout.is_marked()? {
            true => check_access(layout.root(), Access::Servers).map(|()| layout),
            false => Err(LayoutError::Missing { root: layout.root().to_owned() }),
        }
    }

    /// The paths below `root`, which stay right when the process changes its working directory.
    fn at(root: &Path) -> Result<Layout, LayoutError> {
        let root = std::path::absolute(root).map_err(LayoutError::io("find", root))?;
        let (tmp, segments) = (root.join("tmp"), root.join("packs"));
        Ok(Layout(Arc::new(Paths { root, tmp, segments })))
    }

    /// The directory itself, as an absolute path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Where files are that are no blobs yet. On the same file system as the buckets: a rename makes them blobs.
    #[must_use]
    pub fn tmp(&self) -> &Path {
        &self.0.tmp
    }

    /// Where packs of small blobs are, if there are any. ZEO looks at nothing that is not a bucket.
    pub fn segments_dir(&self) -> &Path {
        &self.0.segments
    }

    /// Returns the path of a segment.
    #[must_use]
    pub fn segment_path(&self, number: u32) -> PathBuf {
        self.segments_dir().join(segment_name(number))
    }

    /// Whether they have a directory there, and not a link to one.
    pub fn has_segments(&self) -> bool {
        fs::symlink_metadata(self.segments_dir()).is_ok_and(|found| found.is_dir())
    }

    /// The path that a blob's file has, whether it is there or not.
    #[must_use]
    pub fn blob_path(&self, blob: BlobId) -> PathBuf {
        let mut path = self.bucket_path(blob.bucket());
        path.push(blob.file_name());
        path
    }

    /// The path of a bucket, whether it is there or not. Buckets are numbered from 0 to [`BlobId::BUCKETS`] - 1.
    #[must_use]
    pub fn bucket_path(&self, bucket: u64) -> PathBuf {
        self.root().join(bucket.to_string())
    }

    /// The path of a bucket's lock file. A lock file is never deleted.
    #[must_use]
    pub fn lock_path(&self, bucket: u64) -> PathBuf {
        let mut path = self.bucket_path(bucket);
        path.push(".lock");
        path
    }

    /// Makes a bucket. `true` where it was not there before: who needs it to survive a power cut syncs
    /// [`Layout::root`] then.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create_bucket(&self, bucket: u64) -> io::Result<bool> {
        create_dir(&self.bucket_path(bucket), 0o755)
    }

    /// Every blob's file, bucket by bucket, sorted by name within a bucket. Other names are skipped.
    ///
    /// Files may come and go while this runs. What the file system says in between is passed on, and the
    /// iteration goes on with the next bucket.
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

    /// The partial downloads.
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

    /// The file that says which layout this is.
    pub fn marker(&self) -> PathBuf {
        self.root().join(MARKER)
    }

    /// Whether the marker is there; an error where it names another layout.
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

    /// Whether nothing is there but, maybe, a marker that somebody is just writing.
    fn is_empty(&self) -> Result<bool, LayoutError> {
        let marker = |name: OsString| name.to_str().is_some_and(|name| name.starts_with(MARKER));
        fs::read_dir(self.root())
            .and_then(|mut entries| {
                entries.try_fold(true, |empty, entry| Ok(empty && marker(entry?.file_name())))
            })
            .map_err(LayoutError::io("list", self.root()))
    }

    /// Writes the marker, whole or not at all, also where two do it at once.
    fn mark(&self) -> io::Result<()> {
        // Readable for whom the owner lets into the directory, like all that is in it.
        let mode = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().prefix(MARKER).permissions(mode).tempfile_in(self.root())?;
        file.write_all(LAYOUT.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(self.marker())?;
        Ok(())
    }
}

/// The name of a pack.
pub fn segment_name(number: u32) -> String {
    format!("{number:08x}.pack")
}

/// The inverse of [`segment_name`]; `None` for any other name.
pub fn segment_number(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_suffix(".pack")?, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

/// The name of a partial download.
pub fn partial_name(blob: BlobId) -> String {
    format!("{}.{}.part", blob.oid, blob.tid)
}

/// The inverse of [`partial_name`]; `None` for any other name.
fn partial(name: &str) -> Option<BlobId> {
    let (oid, tid) = name.strip_suffix(".part")?.split_once('.')?;
    let blob = BlobId { oid: Oid(oid.parse().ok()?), tid: tid.parse().ok()? };
    (partial_name(blob) == name).then_some(blob)
}

/// Makes a directory; `false` where it was there.
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
    fn a_new_directory_is_made_for_its_owner_alone_and_can_be_opened_again() {
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
    fn a_directory_that_python_made_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".layout"), "zeocache\n").unwrap();
        fs::create_dir(dir.path().join("17")).unwrap();
        assert!(Layout::open(dir.path()).is_ok());
    }

    #[test]
    fn a_directory_that_is_used_for_something_else_is_refused_and_left_as_it_is() {
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
    fn a_directory_that_others_can_write_to_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        Layout::open(dir.path()).unwrap();
        let mode = |mode| fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        mode(0o770);
        let refused = Layout::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("mode is 770") && refused.contains("chmod -R go-w"), "{refused}");
        assert!(
            Layout::open_existing(dir.path()).is_ok(),
            "who may write to a server's directory is its affair"
        );
        mode(0o777);
        assert!(matches!(Layout::open_existing(dir.path()), Err(LayoutError::Writable { .. })));
        mode(0o700);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(4711), None).unwrap();
            let refused = Layout::open(dir.path()).unwrap_err().to_string();
            assert!(refused.contains("belongs to user 4711"), "{refused}");
        } else {
            println!("skipped: only root can make a directory somebody else's");
        }
    }

    #[test]
    fn many_may_open_a_new_directory_at_once() {
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
    fn what_is_nearly_called_a_partial_download_is_none() {
        let blob = BlobId { oid: Oid(7), tid: Tid(0xabc) };
        assert_eq!(partial(&partial_name(blob)), Some(blob));
        for name in ["07.0000000000000abc", "+7.0000000000000abc", "7.0000000000000ABC", "7.abc", "7."] {
            assert_eq!(partial(&format!("{name}.part")), None, "{name}");
        }
    }

    #[test]
    fn blobs_have_the_paths_of_zeo_and_are_found_again() {
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
