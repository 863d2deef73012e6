//! `get`: fetch files into the cache, or copy them out of it.

use std::collections::BTreeMap;
use std::fs::{File as OpenFile, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use blobferry_catalog::{File, NameAt};
use blobferry_protocol::{BlobId, Digest, Tid};
use serde::Serialize;

use super::{TRANSFERS, find_files, raise_descriptor_limit, transfer_all};
use crate::cli::GetArgs;
use crate::failure::Failure;
use crate::output::{Output, Render};
use crate::progress::Bar;
use crate::remote::Remote;

/// A fetched file.
#[derive(Serialize)]
struct Got<'a> {
    #[serde(serialize_with = "crate::output::text")]
    name: &'a NameAt,
    oid: u64,
    #[serde(serialize_with = "crate::output::text")]
    tid: Tid,
    size: u64,
    #[serde(serialize_with = "crate::output::text")]
    digest: Digest,
    path: &'a Path,
}

impl Render for Got<'_> {
    fn plain(&self) -> String {
        self.path.display().to_string()
    }
}

/// Runs `get`.
pub(super) async fn run<W: Write>(
    args: &GetArgs,
    remote: &Remote,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let files = find_files(remote, &args.names).await?;
    let targets = match &args.output {
        Some(path) => copies(path, &args.names)?.into_iter().map(Some).collect(),
        None => vec![None; files.len()],
    };
    let bar = Bar::new("getting", files.iter().map(|file| file.blob.size).sum());
    let wanted = files.iter().zip(targets);
    raise_descriptor_limit();
    // Open files are not evicted. They stay open until all paths are printed.
    let got = transfer_all(TRANSFERS, wanted, |(file, target)| get(remote, file, target, &bar)).await?;
    drop(bar);
    if args.output.is_some() && !output.is_json() {
        return Ok(());
    }
    for ((name, file), (path, _)) in args.names.iter().zip(files).zip(&got) {
        let (oid, size, digest) = (file.oid.0, file.blob.size, file.blob.digest);
        output.line(&Got { name, oid, tid: file.tid, size, digest, path })?;
    }
    output.flush()
}

/// Fetches one file. Returns its path: in the cache, with the open file, or that of the copy.
async fn get(
    remote: &Remote,
    file: &File,
    target: Option<PathBuf>,
    bar: &Bar,
) -> Result<(PathBuf, Option<OpenFile>), Failure> {
    let part = bar.part(file.blob.size);
    let blob = BlobId { oid: file.oid, tid: file.tid };
    let progress = part.clone();
    let (cached, mut open) = remote.fetch(blob, file.blob.size, move |done| progress.reached(done)).await?;
    part.complete();
    let Some(target) = target else { return Ok((cached, Some(open))) };
    let executable = file.record.executable;
    let copied = tokio::task::spawn_blocking(move || match copy(&mut open, &target, executable) {
        Ok(()) => Ok((target, None)),
        Err(source) => Err(Failure::System { doing: format!("writing {}", target.display()), source }),
    });
    copied.await.map_err(|error| Failure::System { doing: "copying".into(), source: error.into() })?
}

/// Returns the paths of the copies. If `path` is a directory or there are several names, each copy
/// is in it under its base name; otherwise `path` is the copy.
fn copies(path: &Path, names: &[NameAt]) -> Result<Vec<PathBuf>, Failure> {
    if names.len() == 1 && !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    std::fs::create_dir_all(path).map_err(|source| Failure::System {
        doing: format!("making the directory {}", path.display()),
        source,
    })?;
    let mut taken: BTreeMap<&str, &NameAt> = BTreeMap::new();
    let mut paths = Vec::with_capacity(names.len());
    for name in names {
        let base = name.path.split_last().map_or("", |(_, base)| base.as_str());
        if let Some(first) = taken.insert(base, name) {
            let both =
                format!("`{first}` and `{name}` would both be written to {}", path.join(base).display());
            return Err(Failure::Usage(format!("{both}: get them one by one")));
        }
        paths.push(path.join(base));
    }
    Ok(paths)
}

/// Copies a file atomically: other programs see the old file or the complete new one.
fn copy(from: &mut OpenFile, to: &Path, executable: bool) -> io::Result<()> {
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The system applies the user's umask.
    let permissions = Permissions::from_mode(if executable { 0o777 } else { 0o666 });
    let mut copy =
        tempfile::Builder::new().prefix(".blobferry-").permissions(permissions).tempfile_in(directory)?;
    io::copy(from, copy.as_file_mut())?;
    copy.persist(to).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(texts: &[&str]) -> Vec<NameAt> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn one_name_goes_to_the_path_several_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let (file, inner) = (dir.path().join("file"), dir.path().join("made/for it"));
        assert_eq!(copies(&file, &names(&["d/a"])).unwrap(), [file]);
        assert_eq!(copies(dir.path(), &names(&["d/a"])).unwrap(), [dir.path().join("a")]);
        assert_eq!(copies(&inner, &names(&["d/a", "b"])).unwrap(), [inner.join("a"), inner.join("b")]);
        let error = copies(dir.path(), &names(&["d/a", "e/a"])).unwrap_err();
        assert!(error.to_string().contains("`d/a` and `e/a` would both"), "{error}");
    }

    #[test]
    fn copy_replaces_the_target_without_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old and longer").unwrap();
        copy(&mut OpenFile::open(&from).unwrap(), &to, true).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o500, 0o500);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        fs::create_dir(dir.path().join("directory")).unwrap();
        assert!(copy(&mut OpenFile::open(&from).unwrap(), &dir.path().join("directory"), false).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
