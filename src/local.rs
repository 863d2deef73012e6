//! The user's files: which files a `put` publishes, and under which names.
//!
//! [`collect`] checks all files before anything is sent, so that a mistake has no effect.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use blobferry_catalog::{FileRecord, Name, NameError, NamePath};
use thiserror::Error;

/// Why a file of the user cannot be put.
#[derive(Debug, Error)]
pub(crate) enum LocalError {
    /// The file does not exist or cannot be read.
    #[error("{}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A directory without `-r`.
    #[error("{} is a directory: put it with -r", path.display())]
    IsADirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A pipe, a socket, a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A symbolic link to a directory, inside a directory. It can lead anywhere, even to a parent.
    #[error("{} is a symbolic link to a directory, which is not followed: put that directory itself", path.display())]
    LinkToADirectory {
        /// The link.
        path: PathBuf,
    },
    /// The path has no last name.
    #[error("{} has no name of its own: give the path by which it has one", path.display())]
    NoName {
        /// The path: `.`, `..` or `/`.
        path: PathBuf,
    },
    /// The file's name is not valid in the catalog.
    #[error("{}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong with the name.
        source: NameError,
    },
    /// Two files would get the same name.
    #[error("{} and {} would both be `{name}`: put them into different directories (--to)", first.display(), second.display())]
    SameName {
        /// The name.
        name: NamePath,
        /// The first file.
        first: PathBuf,
        /// The second file.
        second: PathBuf,
    },
}

impl LocalError {
    /// Returns whether the command line is wrong, as opposed to the file system.
    pub(crate) fn is_usage(&self) -> bool {
        !matches!(self, LocalError::Read { .. })
    }
}

/// A file to put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The file's path on disk.
    pub(crate) file: PathBuf,
    /// The file's path in the catalog.
    pub(crate) path: NamePath,
    /// The size in bytes when it was checked.
    pub(crate) size: u64,
    /// The attributes that are stored beside the bytes.
    pub(crate) record: FileRecord,
}

/// Everything to put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// The files in the order of the command line; those of a directory in the order of their
    /// names.
    pub(crate) files: Vec<Source>,
    /// The directories, including empty ones.
    pub(crate) directories: Vec<NamePath>,
}

/// Checks `files`, and directories if `recursive`, and gives each its name in the directory `to`.
///
/// # Errors
/// [`LocalError`] for the first file that cannot be put.
pub(crate) fn collect(files: &[PathBuf], to: &NamePath, recursive: bool) -> Result<Sources, LocalError> {
    let mut sources = Sources::default();
    let mut given: BTreeMap<Name, &Path> = BTreeMap::new();
    for file in files {
        let name = file.file_name().ok_or_else(|| LocalError::NoName { path: file.clone() })?;
        let name = name_of(file, name)?;
        if let Some(first) = given.insert(name.clone(), file) {
            let (first, second) = (first.to_owned(), file.clone());
            return Err(LocalError::SameName { name: to.join(name), first, second });
        }
        let metadata = fs::metadata(file).map_err(reading(file))?;
        if metadata.is_dir() && !recursive {
            return Err(LocalError::IsADirectory { path: file.clone() });
        }
        let path = to.join(name);
        if metadata.is_dir() {
            collect_directory(file.clone(), path, &mut sources)?;
        } else {
            sources.files.push(source(file.clone(), path, &metadata)?);
        }
    }
    Ok(sources)
}

fn collect_directory(directory: PathBuf, path: NamePath, sources: &mut Sources) -> Result<(), LocalError> {
    let mut todo = vec![(directory, path)];
    while let Some((directory, path)) = todo.pop() {
        let read = fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = read.map_err(reading(&directory))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut inner = Vec::new();
        for entry in entries {
            let file = entry.path();
            let path = path.join(name_of(&file, &entry.file_name())?);
            let is_link = entry.file_type().map_err(reading(&file))?.is_symlink();
            let metadata = fs::metadata(&file).map_err(reading(&file))?;
            if !metadata.is_dir() {
                sources.files.push(source(file, path, &metadata)?);
            } else if is_link {
                return Err(LocalError::LinkToADirectory { path: file });
            } else {
                inner.push((file, path));
            }
        }
        sources.directories.push(path);
        todo.extend(inner.into_iter().rev());
    }
    Ok(())
}

fn name_of(file: &Path, name: &std::ffi::OsStr) -> Result<Name, LocalError> {
    Name::from_os(name).map_err(|source| LocalError::Name { path: file.to_owned(), source })
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> LocalError {
    move |source| LocalError::Read { path: path.to_owned(), source }
}

fn source(file: PathBuf, path: NamePath, metadata: &Metadata) -> Result<Source, LocalError> {
    if !metadata.is_file() {
        return Err(LocalError::NotAFile { path: file });
    }
    let record =
        FileRecord { executable: metadata.permissions().mode() & 0o111 != 0, modified: modified(metadata) };
    Ok(Source { file, path, size: metadata.len(), record })
}

/// Returns the modification time in nanoseconds since 1970, clamped to 64 bits.
fn modified(metadata: &Metadata) -> i64 {
    let Ok(modified) = metadata.modified() else { return 0 };
    match modified.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn collected(sources: &Sources) -> Vec<String> {
        sources.files.iter().map(|source| source.path.to_string()).collect()
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("d/empty")).unwrap();
        fs::create_dir_all(dir.path().join("d/inner")).unwrap();
        for (name, bytes) in [("d/inner/z", "zz"), ("d/b", ""), ("d/a", "a"), ("f", "file")] {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn files_and_directories_get_their_base_names() {
        let dir = tree();
        let files = [dir.path().join("f"), dir.path().join("d/")];
        let sources = collect(&files, &"to/here".parse().unwrap(), true).unwrap();
        assert_eq!(collected(&sources), ["to/here/f", "to/here/d/a", "to/here/d/b", "to/here/d/inner/z"]);
        let directories: Vec<String> = sources.directories.iter().map(ToString::to_string).collect();
        assert_eq!(directories, ["to/here/d", "to/here/d/empty", "to/here/d/inner"]);
        assert_eq!((sources.files[0].size, sources.files[0].record.executable), (4, true));
        assert!(!sources.files[1].record.executable);
        assert!(sources.files[1].record.modified > 1_600_000_000_000_000_000);
    }

    #[test]
    fn unusable_files_are_refused_before_sending() {
        let dir = tree();
        symlink("..", dir.path().join("d/up")).unwrap();
        let refused = |names: &[&str], recursive, expected: &str| {
            let files: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
            let error = collect(&files, &NamePath::ROOT, recursive).unwrap_err();
            let error = crate::causes::chain(&error);
            assert!(error.contains(expected), "{error}");
        };
        refused(&["d"], false, "put it with -r");
        refused(&["d"], true, "is not followed");
        refused(&["f", "d/../f"], true, "would both be `f`");
        refused(&["nothing"], true, "No such file");
        refused(&["d/.."], true, "has no name of its own");
        fs::remove_file(dir.path().join("d/up")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("d/socket")).unwrap();
        refused(&["d"], true, "not a regular file");
        fs::remove_file(dir.path().join("d/socket")).unwrap();
        fs::write(dir.path().join("d/line\nbreak"), "").unwrap();
        refused(&["d"], true, "control character");
    }

    #[test]
    fn links_to_files_are_followed() {
        let dir = tree();
        symlink("../f", dir.path().join("d/link")).unwrap();
        let sources = collect(&[dir.path().join("d")], &NamePath::ROOT, true).unwrap();
        let link = sources.files.iter().find(|source| source.path.to_string() == "d/link").unwrap();
        assert_eq!(link.size, 4);
    }
}
