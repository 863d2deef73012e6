//! The subcommands, one file each. This file selects the subcommand, and has the functions that
//! they share.

mod bench;
mod cache;
mod cat;
mod check;
mod demo;
mod get;
mod log;
mod ls;
mod pack;
mod put;
mod rm;
mod serve;
mod status;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::path::PathBuf;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_catalog::{CatalogError, File, NameAt, Objects, REQUESTS, View};
use blobferry_protocol::{Tid, TxnMeta};
use futures_util::TryFutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::cli::{Cli, Command, Global};
use crate::failure::Failure;
use crate::output::Output;
use crate::remote::{Remote, RemoteError};

/// Runs the subcommand of the command line.
///
/// # Errors
/// [`Failure`], which has the exit code.
pub(crate) async fn run(cli: Cli, stdout: impl Write) -> Result<(), Failure> {
    let output = &mut Output::new(stdout, cli.global.json);
    let global = &cli.global;
    match &cli.command {
        Command::Serve(args) => serve::run(args, global, output).await,
        Command::Check(args) => check::run(args, output),
        Command::Cache(args) => cache::run(args, global, output),
        Command::Demo(args) => demo::run(args, global, output).await,
        Command::DemoWorker(args) => {
            connected(global, async |remote| demo::worker::run(args, remote, output).await).await
        }
        Command::Bench(args) => bench::run(args, global, output).await,
        Command::BenchWorker => {
            connected(global, async |remote| bench::worker::run(global.transport, remote, output).await).await
        }
        Command::Put(args) => put::run(args, global, output).await,
        Command::Get(args) => connected(global, async |remote| get::run(args, remote, output).await).await,
        Command::Cat(args) => connected(global, async |remote| cat::run(args, remote, output).await).await,
        Command::Ls(args) => connected(global, async |remote| ls::run(args, remote, output).await).await,
        Command::Log(args) => connected(global, async |remote| log::run(args, remote, output).await).await,
        Command::Rm(args) => connected(global, async |remote| rm::run(args, remote, output).await).await,
        Command::Status => connected(global, async |remote| status::run(remote, output).await).await,
        Command::Pack(args) => connected(global, async |remote| pack::run(args, remote, output).await).await,
    }?;
    output.flush()
}

/// Connects, runs `work`, and closes the connection. If `work` fails, requests under way are
/// abandoned.
async fn connected(
    global: &Global,
    work: impl AsyncFnOnce(&Remote) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let remote = Remote::connect(global.transport, &global.server, open_cache(global)?).await?;
    work(&remote).await?;
    remote.close().await;
    Ok(())
}

/// Opens the cache of this machine.
fn open_cache(global: &Global) -> Result<Cache, Failure> {
    let limit = global.cache_limit.map(|size| size.0);
    let opened = Cache::open(cache_directory(global)?, CacheConfig { limit, ..CacheConfig::default() });
    Ok(opened.map_err(RemoteError::Cache)?)
}

/// Returns the cache directory: the configured one, or `blobferry` in the user's cache directory.
fn cache_directory(global: &Global) -> Result<PathBuf, Failure> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let named = global.cache.clone();
    let by_user = || absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    named.or_else(|| Some(by_user()?.join("blobferry"))).ok_or_else(|| {
        Failure::Usage(
            "there is no home directory for a cache: name one with --cache or BLOBFERRY_CACHE".into(),
        )
    })
}

/// Raises the soft limit of open files and connections to the hard limit.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Returns the user and the message of a transaction.
fn meta(message: &str) -> TxnMeta {
    let user = ["USER", "LOGNAME"].into_iter().find_map(|variable| std::env::var(variable).ok());
    TxnMeta { user: user.unwrap_or_default().into_bytes(), description: message.as_bytes().to_vec() }
}

/// Resolves names, in the same order. All names without a transaction are read as of one
/// transaction.
async fn find_files<O: Objects>(objects: &O, names: &[NameAt]) -> Result<Vec<File>, CatalogError<O::Error>> {
    let mut views: BTreeMap<Option<Tid>, View<'_, O>> = BTreeMap::new();
    for at in names.iter().map(|name| name.at) {
        if let Entry::Vacant(view) = views.entry(at) {
            view.insert(at.map_or_else(|| Ok(View::now(objects)), |at| View::at(objects, at))?);
        }
    }
    let wanted = names.iter().filter_map(|name| Some((views.get(&name.at)?, name)));
    stream::iter(wanted).map(|(view, name)| view.get_file(name)).buffered(REQUESTS).try_collect().await
}

/// The number of blobs that a command transfers at the same time.
const TRANSFERS: usize = 16;

/// Runs `transfer` for every item, for at most `limit` items at once. Returns the results in the
/// items' order.
///
/// An item can overtake earlier ones, so that a large blob does not delay small ones. Everything
/// runs in the caller's task.
///
/// # Errors
/// The first error. The other transfers are then dropped.
async fn transfer_all<I, T, E, F>(
    limit: usize,
    items: impl IntoIterator<Item = I>,
    mut transfer: impl FnMut(I) -> F,
) -> Result<Vec<T>, E>
where
    F: Future<Output = Result<T, E>>,
{
    let numbered = items.into_iter().enumerate();
    let running = numbered.map(|(number, item)| transfer(item).map_ok(move |result| (number, result)));
    let mut results: Vec<(usize, T)> = stream::iter(running).buffer_unordered(limit).try_collect().await?;
    results.sort_unstable_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn results_are_in_order_and_within_the_limit() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let results = transfer_all(3, 0..20u32, |i| {
            let (running, most) = (&running, &most);
            async move {
                running.set(running.get() + 1);
                most.set(most.get().max(running.get()));
                for _ in 0..(20 - i) {
                    tokio::task::yield_now().await;
                }
                running.set(running.get() - 1);
                Ok::<u32, ()>(i * 2)
            }
        });
        assert_eq!(results.await, Ok((0..20).map(|i| i * 2).collect()));
        assert_eq!(most.get(), 3);
    }

    #[tokio::test]
    async fn first_error_ends_all_transfers() {
        let begun = Cell::new(0);
        let result = transfer_all(2, 0.., |i| {
            begun.set(begun.get() + 1);
            async move { if i == 5 { Err(i) } else { Ok(()) } }
        });
        assert_eq!(result.await, Err(5));
        assert!(begun.get() <= 7);
    }

    #[tokio::test]
    async fn no_items_are_done_at_once() {
        let none = transfer_all(4, Vec::<()>::new(), |()| async { Ok::<(), ()>(()) });
        assert_eq!(none.await, Ok(Vec::new()));
    }
}
