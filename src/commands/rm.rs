//! `rm`: remove names, all of them at once or none.

use std::io::Write;

use blobferry_catalog::{CatalogError, Edit, Entry, NameAt, NamePath, Objects, REQUESTS, View, commit};
use blobferry_protocol::{Oid, Tid};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::meta;
use crate::cli::RmArgs;
use crate::failure::Failure;
use crate::output::{Output, Render, tabbed};
use crate::remote::Remote;

/// A removed name.
#[derive(Serialize)]
struct Removed<'a> {
    #[serde(serialize_with = "crate::output::text")]
    tid: Tid,
    name: &'a NamePath,
}

impl Render for Removed<'_> {
    fn plain(&self) -> String {
        tabbed([&self.tid, self.name])
    }
}

/// Runs `rm`.
pub(super) async fn run<W: Write>(
    args: &RmArgs,
    remote: &Remote,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let view = View::now(remote);
    let edit = removal(&view, &args.names, args.recursive).await?;
    let mut txn = remote.begin(meta(&args.message), false)?;
    let tid = commit(view, &mut txn, &edit).await?;
    for name in &args.names {
        output.line(&Removed { tid, name })?;
    }
    Ok(())
}

/// Returns the edit that removes names, and everything below them.
async fn removal<O: Objects>(view: &View<'_, O>, names: &[NamePath], recursive: bool) -> Result<Edit, Failure>
where
    Failure: From<CatalogError<O::Error>>,
{
    let mut edit = Edit::default();
    for path in names {
        if path.is_root() {
            return Err(Failure::Usage("the root directory cannot be removed: name what is in it".into()));
        }
        match view.get(&NameAt { path: path.clone(), at: None }).await? {
            Entry::File { oid } => edit.remove_file(path, oid, view.file(oid).await?.tid),
            Entry::Directory { .. } if !recursive => {
                return Err(Failure::Usage(format!("`{path}` is a directory: remove it with -r")));
            }
            Entry::Directory { oid } => {
                let files = view.files_below(path, oid).await?;
                let files = stream::iter(files).map(|(path, oid)| with_revision(view, path, oid));
                let files: Vec<_> = files.buffered(REQUESTS).try_collect().await?;
                edit.remove_directory(path, oid, files);
            }
        }
    }
    Ok(edit)
}

async fn with_revision<O: Objects>(
    view: &View<'_, O>,
    path: NamePath,
    oid: Oid,
) -> Result<(NamePath, Oid, Tid), CatalogError<O::Error>> {
    Ok((path, oid, view.file(oid).await?.tid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::put::tests::put;
    use crate::failure::Exit;
    use blobferry_catalog::memory::Memory;

    async fn rm(memory: &Memory, names: &[&str], recursive: bool) -> Result<Tid, Failure> {
        let names: Vec<NamePath> = names.iter().map(|name| name.parse().unwrap()).collect();
        let view = View::now(memory);
        let edit = removal(&view, &names, recursive).await?;
        Ok(commit(view, &mut memory.begin(), &edit).await?)
    }

    #[tokio::test]
    async fn removal_deletes_the_objects() {
        let memory = Memory::default();
        put(&memory, "d/e", &["f", "g"]).await.unwrap();
        put(&memory, "/", &["h"]).await.unwrap();
        rm(&memory, &["h", "d/e/f", "d", "d/e"], true).await.unwrap();
        assert_eq!(memory.live(), [Oid::ROOT]);
    }

    #[tokio::test]
    async fn all_names_are_removed_or_none() {
        let memory = Memory::default();
        put(&memory, "d", &["f"]).await.unwrap();
        for (names, recursive, exit) in [
            (["d/f", "x"], true, Exit::NoSuchName),
            (["d/f", "d"], false, Exit::Usage),
            (["d", "/"], true, Exit::Usage),
        ] {
            assert_eq!(rm(&memory, &names, recursive).await.unwrap_err().exit(), exit);
        }
        assert!(View::now(&memory).find(&"d/f".parse().unwrap()).await.unwrap().is_some());
    }
}
