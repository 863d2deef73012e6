//! The command `blobferry`: publish large files atomically, and read them everywhere at local-disk
//! speed.
//!
//! [`cli`] defines the command line, and [`commands`] has one file per subcommand. [`remote`] is
//! the client's end of a connection, [`server`] the other. [`failure`] turns errors into text and
//! exit codes.

mod causes;
mod cli;
mod commands;
mod failure;
mod format;
mod local;
mod memory;
mod output;
mod process;
mod progress;
mod remote;
mod server;
mod size;
mod transport;

use std::io::{IsTerminal, Write};
use std::num::NonZero;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use cli::{Cli, Command};
use failure::{Exit, Failure};

fn main() -> ExitCode {
    let cli = Cli::read();
    log_to_stderr();
    let done = run(cli);
    tracing::debug!(peak_memory_bytes = memory::peak(), "finished");
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if !failure.quiet() {
                // If standard error is closed as well, only the exit code remains.
                let _ = writeln!(std::io::stderr(), "blobferry: {}", failure.report());
            }
            failure.exit().into()
        }
    }
}

/// Logs to standard error: warnings, or what RUST_LOG selects. Standard output is for results only.
fn log_to_stderr() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}

fn run(cli: Cli) -> Result<(), Failure> {
    let threads = threads(&cli.command);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.map_err(|source| Failure::System { doing: "starting".into(), source })?;
    runtime.block_on(commands::run(cli, std::io::stdout().lock()))
}

/// The most threads for the connections of a server.
const MOST: usize = 4;

/// Returns the number of runtime threads, which carry connections. The pool has other threads for
/// disks.
///
/// A client has one: it answers its server even while the main thread is blocked on standard
/// output. A server has one per processor, at most [`MOST`]. The clients of a benchmark have as
/// many as a server, because they stand for programs that work on what they load.
fn threads(command: &Command) -> usize {
    match command {
        Command::Serve(_) | Command::BenchWorker => {
            std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
        }
        _ => 1,
    }
}
