//! `put`: publish files, all of them at once or none.

use std::io::Write;

use blobferry_catalog::{
    CatalogError, Edit, Entry, NamePath, Objects, REQUESTS, Record, Target, View, Writes, commit,
};
use blobferry_protocol::{BlobInfo, Digest, Tid};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::{TRANSFERS, connected, meta, transfer_all};
use crate::cli::{Global, PutArgs};
use crate::failure::Failure;
use crate::local::{Source, Sources, collect};
use crate::output::{Output, Render, tabbed};
use crate::progress::Bar;
use crate::remote::{Remote, RemoteError, TransactionError};

/// A published file.
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

impl Render for Published {
    fn plain(&self) -> String {
        tabbed([&self.oid, &self.tid, &self.size, &self.digest, &self.name])
    }
}

/// Runs `put`. It checks the user's files before it sends any request.
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
) -> Result<Vec<Published>, CatalogError<RemoteError>> {
    let upload = Upload::prepare(View::now(remote), sources).await?;
    let mut txn = remote.begin(meta(message), cached)?;
    upload.commit(&mut txn).await
}

/// The files to upload, and the object of each.
struct Upload<'a, O> {
    view: View<'a, O>,
    edit: Edit,
    files: Vec<(Source, Target)>,
}

impl<'a, O: Objects> Upload<'a, O> {
    /// Finds the file of every name, or a new object for it.
    async fn prepare(view: View<'a, O>, sources: Sources) -> Result<Upload<'a, O>, CatalogError<O::Error>> {
        let mut edit = Edit::default();
        let checks = stream::iter(&sources.directories).map(|path| must_be_directory(&view, path));
        checks.buffer_unordered(REQUESTS).try_collect::<()>().await?;
        for path in &sources.directories {
            edit.make_directory(path);
        }
        let paths: Vec<NamePath> = sources.files.iter().map(|source| source.path.clone()).collect();
        let targets = edit.put_files(&view, &paths).await?;
        let files = sources.files.into_iter().zip(targets).collect();
        Ok(Upload { view, edit, files })
    }

    /// Uploads the files, several at once, and makes all of them visible.
    async fn commit<W>(self, txn: &mut W) -> Result<Vec<Published>, CatalogError<O::Error>>
    where
        W: Writes<Error = O::Error>,
        O::Error: TransactionError,
    {
        let bar = Bar::new("putting", self.files.iter().map(|(source, _)| source.size).sum());
        let writes = &*txn;
        let stored = transfer_all(TRANSFERS, &self.files, |(source, target)| {
            let part = bar.part(source.size);
            async move {
                let data = Record::File(source.record).encode();
                let progress = move |done| part.reached(done);
                match writes.store_file(target.oid, target.base, data, &source.file, progress).await {
                    // The error of the file that caused it may arrive later.
                    Err(error) if error.is_consequence() => Ok(Err(error)),
                    stored => stored.map(Ok),
                }
            }
        });
        let blobs = stored.await?.into_iter().collect::<Result<Vec<BlobInfo>, O::Error>>()?;
        let tid = commit(self.view, txn, &self.edit).await?;
        let published = self.files.into_iter().zip(blobs).map(|((source, target), blob)| Published {
            oid: target.oid.0,
            tid,
            size: blob.size,
            digest: blob.digest,
            name: source.path,
        });
        Ok(published.collect())
    }
}

async fn must_be_directory<O: Objects>(
    view: &View<'_, O>,
    path: &NamePath,
) -> Result<(), CatalogError<O::Error>> {
    match view.find(path).await? {
        Some(Entry::File { .. }) => Err(CatalogError::NotADirectory { path: path.clone() }),
        None | Some(Entry::Directory { .. }) => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use blobferry_catalog::memory::Memory;
    use blobferry_protocol::RequestError;
    use std::path::PathBuf;

    /// Puts files into a directory. The content of each is its name.
    pub(crate) async fn put(
        memory: &Memory,
        to: &str,
        names: &[&str],
    ) -> Result<Vec<Published>, CatalogError<RequestError>> {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let files: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
        let sources = collect(&files, &to.parse().unwrap(), false).unwrap();
        Upload::prepare(View::now(memory), sources).await?.commit(&mut memory.begin()).await
    }

    #[tokio::test]
    async fn files_are_published_in_one_transaction_in_order() {
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
    async fn second_put_is_a_new_revision_of_the_object() {
        let memory = Memory::default();
        let first = put(&memory, "/", &["f"]).await.unwrap();
        let second = put(&memory, "/", &["f", "g"]).await.unwrap();
        assert_eq!(first[0].oid, second[0].oid);
        assert!(first[0].tid < second[0].tid);
    }

    #[tokio::test]
    async fn files_and_directories_do_not_replace_each_other() {
        let memory = Memory::default();
        put(&memory, "d", &["f"]).await.unwrap();
        assert!(matches!(put(&memory, "/", &["d"]).await, Err(CatalogError::IsADirectory { .. })));
        assert!(matches!(put(&memory, "d/f", &["x"]).await, Err(CatalogError::NotADirectory { .. })));
        assert_eq!(memory.attempts.get(), 1, "no commit is attempted");
    }

    #[tokio::test]
    async fn empty_directory_is_published() {
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
