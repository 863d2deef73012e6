//! A client of a benchmark, in its own process: it carries out messages from its standard input
//! until that ends.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use blobferry_catalog::{Edit, FileRecord, NameError, NamePath, REQUESTS, Record, View, commit};
use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_session::client::{BlobSource, CallError, Session, VoteError};
use blobferry_transport_tokio::wait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::load_generator::{LoadGenerator, Work};
use super::messages::{CallTimes, Calls, Message, Stored};
use crate::failure::Failure;
use crate::output::{Output, Render};
use crate::remote::{CatalogError, Remote, RemoteError};
use crate::transport::Transport;

/// The most commits for one message.
const COMMITS: u32 = 20_000;

/// The bytes of the record of an object without a blob.
const RECORD: usize = 256;

/// A time limit that no work reaches.
const NO_LIMIT: Duration = Duration::from_secs(1 << 32);

/// An answer. It is JSON in any case.
#[derive(Serialize)]
#[serde(transparent)]
struct Answer<T>(T);

impl<T: Serialize> Render for Answer<T> {
    fn plain(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Runs one process.
pub(in crate::commands) async fn run<W: Write>(
    transport: Transport,
    remote: &Remote,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let client = Client { transport, remote };
    while let Some(line) = next_line().await {
        let message = serde_json::from_str(&line);
        let message = message.map_err(|error| Failure::Usage(format!("not a message: {error}")))?;
        match message {
            Message::StoreFile { path, count } => output.line(&Answer(client.store_file(path, count).await?)),
            Message::Fill { count, blob } => output.line(&Answer(client.fill(count, blob).await?)),
            Message::Publish { directory, count, blob } => {
                output.line(&Answer(client.publish(&directory, count, blob).await?))
            }
            Message::Call { what, callers, time } => {
                output.line(&Answer(client.call(what, callers, time).await?))
            }
            Message::Ping { oid, during, on_another } => {
                output.line(&Answer(client.ping(oid, during, on_another).await?))
            }
            Message::Status => {
                let counters: BTreeMap<String, u64> = remote.status().await?.into_iter().collect();
                output.line(&Answer(counters))
            }
        }?;
        output.flush()?;
    }
    Ok(())
}

/// Reads the next message; `None` if the parent process has ended or closed the pipe.
async fn next_line() -> Option<String> {
    let read = || {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    };
    let line = tokio::task::spawn_blocking(read).await.ok()?.ok()?;
    (!line.is_empty()).then_some(line)
}

/// Converts the error of a commit.
fn failed(error: VoteError) -> RemoteError {
    match error {
        VoteError::Call(error) => error.into(),
        // No other client knows the objects, so a conflict is a fault.
        conflict => RemoteError::Call(CallError::Stream(io::Error::other(conflict))),
    }
}

fn unnamed(error: &NameError) -> RemoteError {
    RemoteError::Call(CallError::Stream(io::Error::other(error.to_string())))
}

struct Client<'a> {
    transport: Transport,
    remote: &'a Remote,
}

impl Client<'_> {
    fn session(&self) -> &Session {
        self.remote.session()
    }

    async fn oids(&self, count: u32) -> Result<Vec<Oid>, RemoteError> {
        Ok(wait(|done| self.session().new_oids(count, done)).await?)
    }

    async fn work(&self, work: Work, callers: usize, time: Duration) -> Result<CallTimes, RemoteError> {
        LoadGenerator::new(self.session(), work, time).run(self.transport, callers).await.map_err(failed)
    }

    async fn store_file(&self, path: PathBuf, count: usize) -> Result<CallTimes, RemoteError> {
        let oids = self.oids(count as u32).await?;
        self.work(Work::StoreFile { path, oids }, 1, NO_LIMIT).await
    }

    async fn fill(&self, count: usize, blob: Option<usize>) -> Result<Stored, RemoteError> {
        let oids = self.oids(count as u32).await?;
        let mut transaction = self.session().begin(TxnMeta::default())?;
        let bytes = blob.map(some_bytes);
        let stored = stream::iter(&oids).map(|oid| {
            let (transaction, bytes) = (&transaction, bytes.clone());
            async move {
                match bytes {
                    Some(bytes) => {
                        let bytes = BlobSource::bytes(bytes);
                        let store = |done| {
                            transaction.store_blob(*oid, Tid::ZERO, Vec::new(), bytes, None, done);
                        };
                        wait(store).await.map(drop)
                    }
                    None => wait(|done| transaction.store(*oid, Tid::ZERO, vec![7; RECORD], done)).await,
                }
            }
        });
        stored.buffer_unordered(REQUESTS).try_collect::<()>().await?;
        let tid = wait(|done| transaction.commit(done)).await.map_err(failed)?;
        Ok(Stored { oids, tid })
    }

    async fn publish(&self, directory: &str, count: usize, blob: usize) -> Result<Stored, CatalogError> {
        let (oids, bytes) = (self.oids(count as u32).await?, some_bytes(blob));
        let view = View::now(self.remote);
        let mut edit = Edit::default();
        for oid in &oids {
            let path = format!("{directory}/name-{oid}").parse::<NamePath>();
            edit.add_file(&path.map_err(|error| unnamed(&error))?, *oid);
        }
        let mut transaction = self.remote.begin(TxnMeta::default(), false)?;
        let record = Record::File(FileRecord { executable: false, modified: 0 }).encode();
        let stored =
            stream::iter(&oids).map(|oid| transaction.store_bytes(*oid, record.clone(), bytes.clone()));
        stored.buffer_unordered(REQUESTS).try_collect::<()>().await?;
        let tid = commit(view, &mut transaction, &edit).await?;
        Ok(Stored { oids, tid })
    }

    async fn call(&self, what: Calls, callers: usize, time: Duration) -> Result<CallTimes, RemoteError> {
        let work = match what {
            Calls::CommitBlobs { size } => {
                Work::CommitBlob { bytes: some_bytes(size), oids: self.oids(COMMITS).await? }
            }
            Calls::CommitObjects => {
                Work::CommitObject { record: vec![7; RECORD], oids: self.oids(COMMITS).await? }
            }
            Calls::LoadBlobs { blobs } => Work::LoadBlob { blobs },
            Calls::LoadBytes { blobs } => Work::LoadBytes { blobs },
            Calls::LoadObjects { oids } => Work::LoadObject { oids },
        };
        self.work(work, callers, time).await
    }

    async fn ping(&self, oid: Oid, during: BlobId, on_another: bool) -> Result<CallTimes, RemoteError> {
        let another = match on_another {
            true => Some(self.remote.another(self.transport).await?),
            false => None,
        };
        let session = another.as_ref().map_or(self.session(), Remote::session);
        let pings = LoadGenerator::new(session, Work::Ping { oid }, NO_LIMIT);
        let load = LoadGenerator::new(self.session(), Work::LoadBlob { blobs: vec![during] }, NO_LIMIT);
        let loading = tokio::spawn(load.run(self.transport, 1));
        let pinging = tokio::spawn(pings.clone().run(self.transport, 1));
        let loaded = loading.await;
        pings.end();
        let pinged = pinging.await;
        let unanswered = |_| Err(CallError::Unanswered.into());
        loaded.unwrap_or_else(unanswered).map_err(failed)?;
        let pinged = pinged.unwrap_or_else(unanswered).map_err(failed)?;
        if let Some(another) = another {
            another.close().await;
        }
        Ok(pinged)
    }
}

/// Returns `size` bytes that are not all the same.
fn some_bytes(size: usize) -> Bytes {
    (0..size).map(|n| (n % 251) as u8).collect()
}
