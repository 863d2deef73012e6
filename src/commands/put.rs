//! `put`: publish files, all of them at once or nothing.

use std::io::Write;

use blobferry_protocol::{BlobInfo, Digest, Oid, Tid};
use serde::Serialize;

use super::{connected, meta};
use crate::catalog::{CatalogError, Edit, Entry, NamePath, Objects, Record, View, Writes, commit};
use crate::cli::{Global, PutArgs};
use crate::concurrent::{REQUESTS, TRANSFERS, each};
use crate::failure::Failure;
use crate::local::{Source, Sources, collect};
use crate::output::{Line, Output, tabbed};
use crate::progress::Bar;
use crate::remote::{Remote, RemoteError};

/// A file that was published.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Published {
    oid: u64,
    #[serde(serialize_with = "crate::output::text")]
    tid: Tid,
    pub(super) size: u64,
    #[serde(serialize_with = "crate::output::text")]
    pub(super) digest: Digest,
    pub(super) name: NamePath,
}

impl Line for Published {
    fn plain(&self) -> String {
        tabbed([&self.oid, &self.tid, &self.size, &self.digest, &self.name])
    }
}

/// Runs `put`. The user's files are looked at before the server is asked for anything.
pub(super) async fn run<W: Write>(
    args: &PutArgs,
    global: &Global,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let sources = collect(&args.files, &args.to, args.recursive)?;
    connected(global, async |remote| {
        for published in publish(remote, sources, &args.message, args.cached).await? {
            output.line(&published)?;
        }
        Ok(())
    })
    .await
}

/// Publishes files in one transaction.
pub(super) async fn publish(
    remote: &Remote,
    sources: Sources,
    message: &str,
    cached: bool,
) -> Result<Vec<Published>, CatalogError> {
    let upload = Upload::prepare(View::now(remote), sources).await?;
    let mut txn = remote.begin(meta(message), cached)?;
    upload.commit(&mut txn).await
}

/// What is to be uploaded, and which objects it goes to.
struct Upload<'a, O> {
    view: View<'a, O>,
    edit: Edit,
    files: Vec<Target>,
}

struct Target {
    source: Source,
    oid: Oid,
    base: Tid,
}

impl<'a, O: Objects> Upload<'a, O> {
    /// Finds the file of every name, or a new object for it.
    async fn prepare(view: View<'a, O>, sources: Sources) -> Result<Upload<'a, O>, CatalogError> {
        let mut edit = Edit::default();
        each(REQUESTS, &sources.directories, |path| must_be_directory(&view, path)).await?;
        for path in &sources.directories {
            edit.make_directory(path);
        }
        let found = each(REQUESTS, &sources.files, |source| existing_file(&view, &source.path)).await?;
        let new = found.iter().filter(|file| file.is_none()).count();
        let oids = if new == 0 { Vec::new() } else { view.objects().new_oids(new as u32).await? };
        let mut oids = oids.into_iter();
        let mut files = Vec::with_capacity(sources.files.len());
        for (source, existing) in sources.files.into_iter().zip(found) {
            let (oid, base) = match existing {
                Some((oid, base)) => {
                    edit.revise_file(&source.path, oid, base);
                    (oid, base)
                }
                None => {
                    let oid = oids.next().unwrap_or_default();
                    edit.add_file(&source.path, oid);
                    (oid, Tid::ZERO)
                }
            };
            files.push(Target { source, oid, base });
        }
        Ok(Upload { view, edit, files })
    }

    /// Uploads the files, several at once, and makes all of them visible.
    async fn commit<W: Writes>(self, txn: &mut W) -> Result<Vec<Published>, CatalogError> {
        let bar = Bar::new("putting", self.files.iter().map(|file| file.source.size).sum());
        let writes = &*txn;
        let stored = each(TRANSFERS, &self.files, |Target { source, oid, base }| {
            let part = bar.part(source.size);
            async move {
                let data = Record::File(source.record).encode();
                let progress = move |done| part.reached(done);
                match writes.store_file(*oid, *base, data, &source.file, progress).await {
                    // The file that is to blame will say so: it may be heard after the others.
                    Err(error) if error.is_consequence() => Ok(Err(error)),
                    stored => stored.map(Ok),
                }
            }
        })
        .await?;
        let blobs = stored.into_iter().collect::<Result<Vec<BlobInfo>, RemoteError>>()?;
        let tid = commit(self.view, txn, &self.edit).await?;
        let published = self.files.into_iter().zip(blobs).map(|(Target { source, oid, .. }, blob)| {
            Published { oid: oid.0, tid, size: blob.size, digest: blob.digest, name: source.path }
        });
        Ok(published.collect())
    }
}

async fn must_be_directory<O: Objects>(view: &View<'_, O>, path: &NamePath) -> Result<(), CatalogError> {
    match view.find(path).await? {
        Some(Entry::File { .. }) => Err(CatalogError::NotADirectory { path: path.clone() }),
        None | Some(Entry::Directory { .. }) => Ok(()),
    }
}

/// The file that has this name already, and its revision.
async fn existing_file<O: Objects>(
    view: &View<'_, O>,
    path: &NamePath,
) -> Result<Option<(Oid, Tid)>, CatalogError> {
    match view.find(path).await? {
        None => Ok(None),
        Some(Entry::File { oid }) => Ok(Some((oid, view.file(oid).await?.tid))),
        Some(Entry::Directory { .. }) => Err(CatalogError::IsADirectory { path: path.clone() }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::catalog::memory::Memory;
    use std::path::PathBuf;

    /// Puts files, whose contents are their names, into a directory.
    pub(crate) async fn put(
        memory: &Memory,
        to: &str,
        names: &[&str],
    ) -> Result<Vec<Published>, CatalogError> {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let files: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
        let sources = collect(&files, &to.parse().unwrap(), false).unwrap();
        Upload::prepare(View::now(memory), sources).await?.commit(&mut memory.begin()).await
    }

    #[tokio::test]
    async fn several_files_are_published_in_one_transaction_in_the_order_given() {
        let memory = Memory::default();
        let published = put(&memory, "d", &["b", "a"]).await.unwrap();
        assert_eq!(published[0].tid, published[1].tid);
        assert_eq!(published[0].digest, Digest(*blake3::hash(b"b").as_bytes()));
        let line = published[0].plain();
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!((fields[0], fields[1], fields[2], fields[4]), ("1", "0000000000000001", "1", "d/b"));
        let json = serde_json::to_value(&published[1]).unwrap();
        assert_eq!(json["name"], "d/a");
        assert_eq!(json["tid"], "0000000000000001");
    }

    #[tokio::test]
    async fn a_file_that_is_put_again_is_a_new_revision_of_the_same_object() {
        let memory = Memory::default();
        let first = put(&memory, "/", &["f"]).await.unwrap();
        let second = put(&memory, "/", &["f", "g"]).await.unwrap();
        assert_eq!(first[0].oid, second[0].oid);
        assert!(first[0].tid < second[0].tid);
    }

    #[tokio::test]
    async fn a_file_does_not_replace_a_directory_nor_a_directory_a_file() {
        let memory = Memory::default();
        put(&memory, "d", &["f"]).await.unwrap();
        assert!(matches!(put(&memory, "/", &["d"]).await, Err(CatalogError::IsADirectory { .. })));
        assert!(matches!(put(&memory, "d/f", &["x"]).await, Err(CatalogError::NotADirectory { .. })));
        assert_eq!(memory.attempts.get(), 1, "nothing was tried");
    }

    #[tokio::test]
    async fn an_empty_directory_is_published_too() {
        let (memory, dir) = (Memory::default(), tempfile::tempdir().unwrap());
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let sources = collect(&[empty], &NamePath::ROOT, true).unwrap();
        let upload = Upload::prepare(View::now(&memory), sources).await.unwrap();
        assert_eq!(upload.commit(&mut memory.begin()).await.unwrap(), []);
        let entry = View::now(&memory).find(&"empty".parse().unwrap()).await.unwrap();
        assert!(matches!(entry, Some(Entry::Directory { .. })));
    }
}
