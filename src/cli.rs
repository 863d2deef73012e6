//! The command line: every subcommand and option, and the text of `--help` for them.

use std::num::NonZero;
use std::path::PathBuf;

use blobferry_catalog::{NameAt, NamePath};
use blobferry_protocol::Tid;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::size::{Limit, Size};
use crate::transport::Transport;

/// The default address of a server, for `serve` and for clients.
pub(crate) const DEFAULT_SERVER: &str = "127.0.0.1:7420";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  invalid command line
  3  no such name or blob
  4  conflict: another transaction changed the same file
  5  no server
  6  damaged data

RUST_LOG=info or RUST_LOG=debug prints more, on standard error.";

/// Publish large files atomically, and read them everywhere at local-disk speed.
#[derive(Debug, Parser)]
#[command(name = "blobferry", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The options of every subcommand, before or after its name.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The server to connect to. Several, separated by commas, are tried in order.
    #[arg(long, global = true, env = "BLOBFERRY_SERVER", value_name = "HOST:PORT", default_value = DEFAULT_SERVER)]
    pub(crate) server: String,
    /// The cache directory, which all processes of this machine share [default: the user's cache
    /// directory].
    #[arg(long, global = true, env = "BLOBFERRY_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// The cache's limit of disk space: 10G, 500M, or a number of bytes. It is recorded in the
    /// cache, for all processes that use it. When space is needed, the blobs that were used longest
    /// ago are removed.
    #[arg(long, global = true, env = "BLOBFERRY_CACHE_LIMIT", value_name = "SIZE")]
    pub(crate) cache_limit: Option<Size>,
    /// The implementation of connections, for a server or a client. `tokio` uses all processors.
    /// `mio` uses one thread and no runtime. Both have the same behaviour.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) transport: Transport,
    /// Print one JSON object per line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The options that the command line gives, not the environment or a default.
    #[arg(skip)]
    pub(crate) explicit: Explicit,
}

/// Which of the global options the command line gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Explicit {
    /// Whether `--server` is given.
    pub(crate) server: bool,
    /// Whether `--transport` is given.
    pub(crate) transport: bool,
}

impl Cli {
    /// Reads the command line. If it is invalid, or requests help, the process ends here.
    pub(crate) fn read() -> Cli {
        let matches = Cli::command().get_matches();
        Cli::from_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    fn from_matches(matches: &ArgMatches) -> Result<Cli, clap::Error> {
        let mut cli = Cli::from_arg_matches(matches)?;
        let inner = matches.subcommand().map_or(matches, |(_, inner)| inner);
        let is_given = |id| inner.value_source(id) == Some(ValueSource::CommandLine);
        cli.global.explicit = Explicit { server: is_given("server"), transport: is_given("transport") };
        Ok(cli)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the blobs of a directory, until SIGTERM or SIGINT.
    Serve(ServeArgs),
    /// Publish files: all of them at once, or none.
    ///
    /// Prints one line per file: oid, tid, size, digest, name.
    Put(PutArgs),
    /// Fetch files into the cache, and print their paths.
    Get(GetArgs),
    /// Write the bytes of files to standard output.
    Cat(CatArgs),
    /// List a directory: one name per line.
    Ls(LsArgs),
    /// Print the revisions of a file, newest first: tid, time, size, user, message.
    Log(LogArgs),
    /// Remove names: all of them at once, or none. The files can still be read as of earlier
    /// transactions.
    Rm(RmArgs),
    /// Print the server's counters.
    Status,
    /// Delete the revisions that were replaced before a point in time. Revisions that were current
    /// then stay.
    Pack(PackArgs),
    /// Check that everything in a server's directory is as it was committed, while no server has it
    /// open.
    ///
    /// Reads every byte. Prints one line per finding (kind, oid, tid, path, what is wrong, what can
    /// be done), and exits with code 6 if any finding is damage.
    Check(CheckArgs),
    /// Manage this machine's cache, without a server. Without a subcommand, prints its disk usage.
    Cache(CacheArgs),
    /// Demonstrate it: a server, and 8 processes that request the same files at the same time.
    Demo(DemoArgs),
    /// One of the processes that `demo` starts.
    #[command(hide = true)]
    DemoWorker(DemoWorkerArgs),
    /// Measure the performance, relative to the limits of this machine.
    ///
    /// Starts its own servers and clients, with each transport. In the same run it measures
    /// baselines that no program can exceed: a bare loop from a socket to a file, a sync of the
    /// disk, a bare round trip. Prints a table with the median of every figure, how much its runs
    /// differ, and its ratio to the baseline.
    ///
    /// With --server it measures a running server, as far as possible from outside. The objects
    /// that it stores there remain.
    ///
    /// Takes about half an hour. Much of that are pauses, because disks are faster in short bursts
    /// than over a long time.
    Bench(BenchArgs),
    /// One of the clients that `bench` starts.
    #[command(hide = true)]
    BenchWorker,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The server's directory. It is created if it does not exist.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The address to listen on. Port 0 selects a free port.
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_SERVER)]
    pub(crate) listen: String,
}

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// Files to publish under their base names.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The directory of names to put them into. It is created if it does not exist.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) to: NamePath,
    /// Put directories with everything in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// A message, which `log` prints.
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// Also keep a copy of every file in this machine's cache.
    #[arg(long)]
    pub(crate) cached: bool,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Files, now or as of a transaction (16 hexadecimal digits).
    #[arg(required = true, value_name = "NAME[@TID]")]
    pub(crate) names: Vec<NameAt>,
    /// Write a copy to this path instead. For several names it is a directory.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
}

/// Arguments of `cat`.
#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// Files, now or as of a transaction (16 hexadecimal digits).
    #[arg(required = true, value_name = "NAME[@TID]")]
    pub(crate) names: Vec<NameAt>,
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// The directory, now or as of a transaction.
    #[arg(value_name = "DIR[@TID]", default_value = "/")]
    pub(crate) name: NameAt,
    /// Print more: tid, time, size, digest, name.
    #[arg(short, long)]
    pub(crate) long: bool,
}

/// Arguments of `log`.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The file. NAME@TID finds a file that was removed later.
    #[arg(value_name = "NAME[@TID]")]
    pub(crate) name: NameAt,
    /// The most revisions to print.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1000)]
    pub(crate) limit: u32,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names to remove.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<NamePath>,
    /// Remove directories with everything in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// A message, which `log` prints.
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
}

/// Arguments of `pack`.
#[derive(Debug, Args)]
pub(crate) struct PackArgs {
    /// Keep the revisions that were current just before this transaction, and all later ones
    /// [default: now].
    #[arg(long, value_name = "TID", conflicts_with = "keep_days")]
    pub(crate) before: Option<Tid>,
    /// Keep the revisions that were current N days ago, and all later ones.
    #[arg(long, value_name = "N")]
    pub(crate) keep_days: Option<u32>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The server's directory.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Repair what can be repaired without inventing data: remove files that belong to no
    /// transaction, rebuild indexes and totals. Without this option nothing is changed.
    #[arg(long)]
    pub(crate) repair: bool,
}

/// Arguments of `cache`.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) command: Option<CacheCommand>,
}

/// The subcommands of `cache`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the blobs: one OID@TID per line.
    Ls(CacheLsArgs),
    /// Remove leftovers, and blobs beyond the limit: those used longest ago first. Blobs in use or
    /// pinned stay.
    Gc(CacheGcArgs),
    /// Read every blob, and remove damaged ones. The exit code is 6 if there were any.
    Verify,
    /// Keep blobs even when space is needed.
    Pin(CachePinArgs),
    /// Remove all blobs that are neither in use nor pinned.
    Clear,
}

/// Arguments of `cache ls`.
#[derive(Debug, Args)]
pub(crate) struct CacheLsArgs {
    /// Print more: blob, size, bytes on disk, last use, state, path.
    #[arg(short, long)]
    pub(crate) long: bool,
}

/// Arguments of `cache gc`.
#[derive(Debug, Args)]
pub(crate) struct CacheGcArgs {
    /// First set the cache's limit, for all processes that use it: 10G, 500M, a number of bytes, or
    /// `none`.
    #[arg(long, value_name = "SIZE")]
    pub(crate) limit: Option<Limit>,
    /// Remove down to this size, instead of the limit.
    #[arg(long, value_name = "SIZE")]
    pub(crate) to: Option<Size>,
}

/// Arguments of `cache pin`.
#[derive(Debug, Args)]
pub(crate) struct CachePinArgs {
    /// Blobs as `cache ls` prints them, or the paths that `get` prints.
    #[arg(required = true, value_name = "OID@TID|PATH")]
    pub(crate) blobs: Vec<String>,
    /// Unpin them.
    #[arg(long)]
    pub(crate) remove: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Files for the demonstration [default: generated files].
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

/// Arguments of the processes that `demo` starts.
#[derive(Debug, Args)]
pub(crate) struct DemoWorkerArgs {
    /// The files that every process requests.
    #[arg(required = true)]
    pub(crate) names: Vec<NameAt>,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure [default: all but idle and scale].
    #[arg(value_enum, value_name = "SECTION")]
    pub(crate) sections: Vec<Section>,
    /// A directory on the disk to measure [default: the current directory]. All files are made in
    /// one subdirectory, which is removed at the end.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// The number of rounds [default: 3; with --quick: 1].
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<NonZero<u32>>,
    /// The size of the largest blob [default: 1G; with --quick: 32M].
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Size>,
    /// The number of blobs and names in the full store of `scale` [default: 1000000; with --quick:
    /// 2000].
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZero<u32>>,
    /// The number of connections of `idle` [default: 10000; with --quick: 200].
    #[arg(long, value_name = "N")]
    pub(crate) connections: Option<NonZero<u32>>,
    /// Less of everything, and no pauses: to check that it works, not to compare.
    #[arg(long)]
    pub(crate) quick: bool,
}

/// The sections of `bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Section {
    /// Blobs of 1 MiB, 64 MiB and 1 GiB, stored and loaded.
    Large,
    /// Memory and processor time of both sides, for the largest blob in each direction.
    Memory,
    /// Four clients that load different blobs.
    Clients,
    /// Blobs of 10 KiB, committed and loaded by 1, 16 and 64 callers.
    Small,
    /// Objects without blobs, committed and loaded.
    Objects,
    /// Blobs that are in the cache.
    Hits,
    /// Small requests while a large blob is loaded.
    Ping,
    /// Idle connections.
    Idle,
    /// A store with many small blobs and names, compared with an empty one.
    Scale,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_before_or_after_the_subcommand() {
        for line in ["blobferry --server a:1 --json ls", "blobferry ls --server a:1 --json"] {
            let cli = parse(line).unwrap();
            assert_eq!((cli.global.server.as_str(), cli.global.json), ("a:1", true), "{line}");
        }
    }

    #[test]
    fn explicit_options_are_known_in_any_position() {
        let explicit = |line: &str| {
            let matches = Cli::command().try_get_matches_from(line.split_whitespace()).unwrap();
            let explicit = Cli::from_matches(&matches).unwrap().global.explicit;
            (explicit.server, explicit.transport)
        };
        assert_eq!(explicit("blobferry bench"), (false, false));
        assert_eq!(explicit("blobferry --server a:1 bench"), (true, false));
        assert_eq!(explicit("blobferry bench --transport tokio --server a:1"), (true, true));
    }

    #[test]
    fn invalid_command_line_is_a_usage_error() {
        for line in [
            "blobferry",
            "blobferry put",
            "blobferry get a//b",
            "blobferry pack --before 12",
            "blobferry rm",
            "blobferry cache pin",
            "blobferry ls --cache-limit much",
            "blobferry bench nonsense",
            "blobferry bench --rounds 0",
            "blobferry bench --size much",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        let both = parse("blobferry pack --keep-days 3 --before 0000000000000001");
        assert_eq!(both.unwrap_err().exit_code(), 2);
        assert_eq!(parse("blobferry --help").unwrap_err().exit_code(), 0);
    }
}
