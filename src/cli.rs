//! The command line: every subcommand and option, and what `--help` says about them.

use std::num::NonZero;
use std::path::PathBuf;

use blobferry_protocol::Tid;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::size::{Limit, Size};
use crate::transport::Transport;
use blobferry_catalog::{NameAt, NamePath};

/// Where a server listens, and is looked for, unless somebody says otherwise.
pub(crate) const DEFAULT_SERVER: &str = "127.0.0.1:7420";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line can not be meant
  3  no such name or blob
  4  conflict: somebody else changed the same file meanwhile
  5  no server
  6  damaged data

RUST_LOG=info or RUST_LOG=debug tells more, on standard error.";

/// Publish large files atomically, and read them everywhere at local-disk speed.
#[derive(Debug, Parser)]
#[command(name = "blobferry", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every subcommand takes, before or after its name.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The server to talk to; several, with commas between them, are tried in turn.
    #[arg(long, global = true, env = "BLOBFERRY_SERVER", value_name = "HOST:PORT", default_value = DEFAULT_SERVER)]
    pub(crate) server: String,
    /// The directory of blobs that all processes of this machine share [default: the user's cache directory].
    #[arg(long, global = true, env = "BLOBFERRY_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// The most that the cache may have on the disk: 10G, 500M, or a number of bytes. It is recorded in the cache, for all
    /// who use it; what was used longest ago is removed when room is needed.
    #[arg(long, global = true, env = "BLOBFERRY_CACHE_LIMIT", value_name = "SIZE")]
    pub(crate) cache_limit: Option<Size>,
    /// What carries the connections, of a server or a client. `tokio` uses all processors for them without being told how
    /// many; `mio` has one thread for them, and does without a runtime. They do the same.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) transport: Transport,
    /// Print one JSON object a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What of this was said on the command line, and not left to defaults or the environment.
    #[arg(skip)]
    pub(crate) said: Said,
}

/// Which of the global options were said on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// `--server`
    pub(crate) server: bool,
    /// `--transport`
    pub(crate) transport: bool,
}

impl Cli {
    /// Reads the command line. Where it can not be meant, or asks for help, the process ends here.
    pub(crate) fn read() -> Cli {
        let matches = Cli::command().get_matches();
        Cli::understand(&matches).unwrap_or_else(|error| error.exit())
    }

    fn understand(matches: &ArgMatches) -> Result<Cli, clap::Error> {
        let mut cli = Cli::from_arg_matches(matches)?;
        let inner = matches.subcommand().map_or(matches, |(_, inner)| inner);
        let said = |id| inner.value_source(id) == Some(ValueSource::CommandLine);
        cli.global.said = Said { server: said("server"), transport: said("transport") };
        Ok(cli)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the blobs of a directory, until SIGTERM or SIGINT.
    Serve(ServeArgs),
    /// Publish files: all of them at once, or nothing.
    ///
    /// Prints a line for every file: oid, tid, size, digest, name.
    Put(PutArgs),
    /// Fetch files into the cache, and print where they are.
    Get(GetArgs),
    /// Write the bytes of files to standard output.
    Cat(CatArgs),
    /// List a directory: one name a line.
    Ls(LsArgs),
    /// Tell the revisions of a file, newest first: tid, time, size, user, message.
    Log(LogArgs),
    /// Remove names: all of them at once, or nothing. What was there can still be read as of earlier transactions.
    Rm(RmArgs),
    /// Tell the server's counters.
    Status,
    /// Forget the revisions that were replaced before a moment. What is current then stays.
    Pack(PackArgs),
    /// Look whether everything in a server's directory is as it was committed, while no server has it open.
    ///
    /// Reads every byte. Prints a line for everything that is not as it should be (kind, oid, tid, path, what is wrong,
    /// what can be done), and ends with code 6 if any of it is damage.
    Check(CheckArgs),
    /// Keep house in this machine's cache, without a server. Tells what it takes.
    Cache(CacheArgs),
    /// Watch it work: a server and 8 processes that all want the same files at once.
    Demo(DemoArgs),
    /// One of the processes that `demo` starts.
    #[command(hide = true)]
    DemoWorker(DemoWorkerArgs),
    /// Measure it beside the limits of this machine.
    ///
    /// Starts servers and clients of its own, both transports in turn, and measures beside them, in the same run, what
    /// any program could reach at most: a bare loop from a socket to a file, the disk's sync, a bare round trip. Prints a
    /// table: every figure as a median, how far its runs differ, and its part of the limit.
    ///
    /// With --server it measures a server that runs already, as far as that can be done from outside. What it stores there
    /// stays there.
    ///
    /// Takes about half an hour, much of it pauses: disks are faster in short bursts than they are for long.
    Bench(BenchArgs),
    /// One of the clients that `bench` starts.
    #[command(hide = true)]
    BenchWorker,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The server's directory. Made where there is none.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Where to listen; port 0 is any free one.
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_SERVER)]
    pub(crate) listen: String,
}

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// Files, put under their base names.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The directory to put them into. Made where there is none.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) to: NamePath,
    /// Put directories with all that is in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// What for: `log` tells it.
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// Keep a copy of every file in this machine's cache, too.
    #[arg(long)]
    pub(crate) cached: bool,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Files, now or as of a transaction (16 hexadecimal digits).
    #[arg(required = true, value_name = "NAME[@TID]")]
    pub(crate) names: Vec<NameAt>,
    /// Write a copy there instead; a directory for several names.
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
    /// Tell more: tid, time, size, digest, name.
    #[arg(short, long)]
    pub(crate) long: bool,
}

/// Arguments of `log`.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The file. NAME@TID finds one that has been removed since.
    #[arg(value_name = "NAME[@TID]")]
    pub(crate) name: NameAt,
    /// At most so many revisions.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1000)]
    pub(crate) limit: u32,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// What to remove.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<NamePath>,
    /// Remove directories with all that is in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// What for.
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
}

/// Arguments of `pack`.
#[derive(Debug, Args)]
pub(crate) struct PackArgs {
    /// Keep what was current just before this transaction, and all since [default: now].
    #[arg(long, value_name = "TID", conflicts_with = "keep_days")]
    pub(crate) before: Option<Tid>,
    /// Keep what was current so many days ago, and all since.
    #[arg(long, value_name = "N")]
    pub(crate) keep_days: Option<u32>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The server's directory.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Mend what can be mended without making anything up: remove what belongs to no transaction, make indexes and
    /// totals anew. Without it, nothing is changed.
    #[arg(long)]
    pub(crate) repair: bool,
}

/// Arguments of `cache`.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) command: Option<CacheCommand>,
}

/// What can be done with a cache.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the blobs: one OID@TID a line.
    Ls(CacheLsArgs),
    /// Remove leftovers, and what is more than the limit: first what was used longest ago. What is in use or pinned stays.
    Gc(CacheGcArgs),
    /// Read every blob, and remove those that are damaged: exit code 6 if there were any.
    Verify,
    /// Keep blobs, also when room is needed.
    Pin(CachePinArgs),
    /// Remove everything that is neither in use nor pinned.
    Clear,
}

/// Arguments of `cache ls`.
#[derive(Debug, Args)]
pub(crate) struct CacheLsArgs {
    /// Tell more: blob, size, bytes on the disk, last use, state, path.
    #[arg(short, long)]
    pub(crate) long: bool,
}

/// Arguments of `cache gc`.
#[derive(Debug, Args)]
pub(crate) struct CacheGcArgs {
    /// First set the limit of the cache, for all who use it, from now on: 10G, 500M, a number of bytes, or `none`.
    #[arg(long, value_name = "SIZE")]
    pub(crate) limit: Option<Limit>,
    /// Remove down to this size, instead of the limit.
    #[arg(long, value_name = "SIZE")]
    pub(crate) to: Option<Size>,
}

/// Arguments of `cache pin`.
#[derive(Debug, Args)]
pub(crate) struct CachePinArgs {
    /// Blobs as `cache ls` names them, or the paths that `get` prints.
    #[arg(required = true, value_name = "OID@TID|PATH")]
    pub(crate) blobs: Vec<String>,
    /// Let them go again.
    #[arg(long)]
    pub(crate) remove: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Files to show it with; without any, some are made.
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

/// Arguments of the processes that `demo` starts.
#[derive(Debug, Args)]
pub(crate) struct DemoWorkerArgs {
    /// The files that all of them want.
    #[arg(required = true)]
    pub(crate) names: Vec<NameAt>,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure [default: all but idle and scale].
    #[arg(value_enum, value_name = "SECTION")]
    pub(crate) sections: Vec<Section>,
    /// Where to make the files: on the disk that is to be measured [default: the current directory]. All of it is in one
    /// directory that is gone afterwards.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// How often everything is measured [default: 3; with --quick: 1].
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<NonZero<u32>>,
    /// The size of the largest blob [default: 1G; with --quick: 32M].
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Size>,
    /// How many blobs and names the full store of `scale` has [default: 1000000; with --quick: 2000].
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZero<u32>>,
    /// How many connections `idle` makes [default: 10000; with --quick: 200].
    #[arg(long, value_name = "N")]
    pub(crate) connections: Option<NonZero<u32>>,
    /// Less of everything, and no pauses: to see that it works, not to compare.
    #[arg(long)]
    pub(crate) quick: bool,
}

/// What `bench` can measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Section {
    /// Blobs of 1 MiB, 64 MiB and 1 GiB, stored and loaded.
    Large,
    /// Memory and processor time of both sides, for the largest blob each way.
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
    /// Connections that say nothing.
    Idle,
    /// A store that is full of small blobs and names, beside an empty one.
    Scale,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_before_and_after_the_subcommand() {
        for line in ["blobferry --server a:1 --json ls", "blobferry ls --server a:1 --json"] {
            let cli = parse(line).unwrap();
            assert_eq!((cli.global.server.as_str(), cli.global.json), ("a:1", true), "{line}");
        }
    }

    #[test]
    fn what_was_said_on_the_command_line_is_known_wherever_it_was_said() {
        let said = |line: &str| {
            let matches = Cli::command().try_get_matches_from(line.split_whitespace()).unwrap();
            let said = Cli::understand(&matches).unwrap().global.said;
            (said.server, said.transport)
        };
        assert_eq!(said("blobferry bench"), (false, false));
        assert_eq!(said("blobferry --server a:1 bench"), (true, false));
        assert_eq!(said("blobferry bench --transport tokio --server a:1"), (true, true));
    }

    #[test]
    fn what_can_not_be_meant_is_a_usage_error() {
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
