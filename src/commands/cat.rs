//! `cat`: write the bytes of files to standard output.

use std::io::{Write, copy};

use blobferry_protocol::BlobId;

use super::find_files;
use crate::cli::CatArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Bar;
use crate::remote::Remote;

/// Runs `cat`. The bytes are the same with `--json`.
pub(super) async fn run<W: Write>(
    args: &CatArgs,
    remote: &Remote,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    for file in find_files(remote, &args.names).await? {
        let bar = Bar::new("getting", file.blob.size);
        let part = bar.part(file.blob.size);
        let blob = BlobId { oid: file.oid, tid: file.tid };
        let (_, mut open) = remote.fetch(blob, file.blob.size, move |done| part.reached(done)).await?;
        drop(bar);
        copy(&mut open, output.bytes()).map_err(Failure::Output)?;
    }
    Ok(())
}
