//! `ls`: list the names of a directory, one per line.

use std::io::Write;

use blobferry_catalog::{CatalogError, Entry, Name, Objects, REQUESTS, View};
use blobferry_protocol::{Digest, Tid};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use crate::cli::LsArgs;
use crate::failure::Failure;
use crate::format;
use crate::output::{Output, Render, tabbed};

/// The number of names that are described before they are printed.
const CHUNK_NAMES: usize = 1024;

/// A name, and with `-l` the details of its file.
#[derive(Serialize)]
struct Listed {
    name: String,
    kind: &'static str,
    oid: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip)]
    long: bool,
}

#[derive(Serialize)]
struct Details {
    #[serde(serialize_with = "crate::output::text")]
    tid: Tid,
    time: String,
    size: u64,
    #[serde(serialize_with = "crate::output::text")]
    digest: Digest,
    executable: bool,
}

impl Render for Listed {
    fn plain(&self) -> String {
        match &self.details {
            None if self.long => tabbed([&"-", &"-", &"-", &"-", &format!("{}/", self.name)]),
            None => self.name.clone(),
            Some(Details { tid, time, size, digest, .. }) => tabbed([tid, time, size, digest, &self.name]),
        }
    }
}

/// Runs `ls`.
pub(super) async fn run<O: Objects, W: Write>(
    args: &LsArgs,
    objects: &O,
    output: &mut Output<W>,
) -> Result<(), Failure>
where
    Failure: From<CatalogError<O::Error>>,
{
    let at = args.name.at;
    let view = at.map_or_else(|| Ok(View::now(objects)), |at| View::at(objects, at))?;
    let entries: Vec<(Name, Entry)> = match (view.get(&args.name).await?, args.name.path.split_last()) {
        (Entry::Directory { oid }, _) => view.list(oid).await?.into_iter().collect(),
        (entry, Some((_, name))) => vec![(name.clone(), entry)],
        (_, None) => Vec::new(),
    };
    for some in entries.chunks(CHUNK_NAMES) {
        let listed = stream::iter(some).map(|(name, entry)| describe(&view, name, *entry, args.long));
        let listed: Vec<Listed> = listed.buffered(REQUESTS).try_collect().await?;
        for listed in listed {
            output.line(&listed)?;
        }
    }
    Ok(())
}

async fn describe<O: Objects>(
    view: &View<'_, O>,
    name: &Name,
    entry: Entry,
    long: bool,
) -> Result<Listed, CatalogError<O::Error>> {
    let name = name.to_string();
    let (kind, oid) = match entry {
        Entry::File { oid } => ("file", oid),
        Entry::Directory { oid } => ("directory", oid),
    };
    let details = match entry {
        Entry::File { oid } if long => {
            let file = view.file(oid).await?;
            Some(Details {
                tid: file.tid,
                time: format::time(file.tid),
                size: file.blob.size,
                digest: file.blob.digest,
                executable: file.record.executable,
            })
        }
        _ => None,
    };
    Ok(Listed { name, kind, oid: oid.0, details, long })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::put::tests::put;
    use blobferry_catalog::memory::Memory;

    async fn ls(memory: &Memory, name: &str, long: bool, json: bool) -> Result<String, Failure> {
        let args = LsArgs { name: name.parse().unwrap(), long };
        let mut bytes = Vec::new();
        let mut output = Output::new(&mut bytes, json);
        run(&args, memory, &mut output).await?;
        output.flush()?;
        drop(output);
        Ok(String::from_utf8(bytes).unwrap())
    }

    #[tokio::test]
    async fn directory_is_listed_in_order_one_name_per_line() {
        let memory = Memory::default();
        assert_eq!(ls(&memory, "/", false, false).await.unwrap(), "", "an empty store");
        put(&memory, "/", &["b", "a"]).await.unwrap();
        put(&memory, "d", &["x"]).await.unwrap();
        assert_eq!(ls(&memory, "/", false, false).await.unwrap(), "a\nb\nd\n");
        assert_eq!(ls(&memory, "/@0000000000000001", false, false).await.unwrap(), "a\nb\n");
        assert_eq!(ls(&memory, "d/x", false, false).await.unwrap(), "x\n");
        assert!(ls(&memory, "nothing", false, false).await.is_err());
    }

    #[tokio::test]
    async fn long_list_has_tid_time_size_digest_and_name() {
        let memory = Memory::default();
        put(&memory, "/", &["abc"]).await.unwrap();
        put(&memory, "d", &["x"]).await.unwrap();
        let digest = blake3::hash(b"abc").to_hex();
        let expected = format!("0000000000000001\t-\t3\t{digest}\tabc\n-\t-\t-\t-\td/\n");
        assert_eq!(ls(&memory, "/", true, false).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn json_is_one_object_per_line() {
        let memory = Memory::default();
        put(&memory, "d", &["abc"]).await.unwrap();
        assert_eq!(
            ls(&memory, "/", false, true).await.unwrap(),
            "{\"name\":\"d\",\"kind\":\"directory\",\"oid\":2}\n"
        );
        let line: serde_json::Value =
            serde_json::from_str(&ls(&memory, "d", true, true).await.unwrap()).unwrap();
        assert_eq!((&line["size"], &line["tid"]), (&3.into(), &"0000000000000001".into()));
        assert_eq!(line["executable"], false);
    }
}
