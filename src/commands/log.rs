//! `log`: print the revisions of a file, newest first.

use std::io::Write;

use blobferry_protocol::{Digest, HistoryEntry, Tid};
use serde::Serialize;

use super::find_files;
use crate::cli::LogArgs;
use crate::failure::Failure;
use crate::format;
use crate::output::{Output, Render, tabbed};
use crate::remote::Remote;

/// One revision. Without a size, it is the removal of the file.
#[derive(Serialize)]
struct Logged {
    #[serde(serialize_with = "crate::output::text")]
    tid: Tid,
    time: String,
    size: Option<u64>,
    digest: Option<String>,
    user: String,
    message: String,
}

impl From<HistoryEntry> for Logged {
    fn from(entry: HistoryEntry) -> Logged {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Logged {
            tid: entry.tid,
            time: format::time(entry.tid),
            size: entry.blob.map(|blob| blob.size),
            digest: entry.blob.map(|blob| blob.digest).as_ref().map(Digest::to_string),
            user: text(&entry.meta.user),
            message: text(&entry.meta.description),
        }
    }
}

impl Render for Logged {
    /// The size of a removal is `-`. Control characters are replaced by spaces, to protect the line
    /// and the terminal.
    fn plain(&self) -> String {
        let size = self.size.map_or_else(|| "-".into(), |size| size.to_string());
        let one_line = |text: &str| text.replace(char::is_control, " ");
        tabbed([&self.tid, &self.time, &size, &one_line(&self.user), &one_line(&self.message)])
    }
}

/// Runs `log`.
pub(super) async fn run<W: Write>(
    args: &LogArgs,
    remote: &Remote,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    for file in find_files(remote, std::slice::from_ref(&args.name)).await? {
        for entry in remote.history(file.oid, args.limit).await? {
            output.line(&Logged::from(entry))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::{BlobInfo, TxnMeta};

    #[test]
    fn revision_is_one_line_for_any_message() {
        let meta = TxnMeta { user: b"me".to_vec(), description: b"one\ntwo\t\x1b[31m\xff".to_vec() };
        let tid = Tid::from_unix(std::time::Duration::from_millis(1_735_689_599_500));
        let blob = Some(BlobInfo { size: 5, digest: Digest([0; 32]) });
        let logged = Logged::from(HistoryEntry { tid, meta: meta.clone(), size: Some(2), blob });
        assert_eq!(logged.plain(), format!("{tid}\t2024-12-31T23:59:59Z\t5\tme\tone two  [31m\u{fffd}"));
        let removed = Logged::from(HistoryEntry { tid, meta, size: None, blob: None });
        assert!(removed.plain().contains("\t-\tme\t"));
        assert!(serde_json::to_value(&removed).unwrap()["size"].is_null());
    }
}
