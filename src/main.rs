//! The command `blobferry`: publish large files atomically, and read them everywhere at local-disk speed.
//!
//! [`cli`] is what can be asked for, [`commands`] does it, `blobferry_catalog` knows what things are called, [`remote`]
//! and [`server`] are the two ends of the connection, and [`failure`] is how it ends.

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
    tracing::debug!(peak_memory_bytes = memory::peak(), "at the end");
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if !failure.quiet() {
                // Where standard error is gone, too, the exit code is all that is left to tell.
                let _ = writeln!(std::io::stderr(), "blobferry: {}", failure.report());
            }
            failure.exit().into()
        }
    }
}

/// Warnings, unless RUST_LOG asks for more or less. Standard output is for what was asked for.
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

/// Threads for connections: one for a client, so that it answers its server also while whoever reads its standard
/// output takes a rest. Disks have threads of their own. The clients of a benchmark have as many as a server: they
/// stand for programs that are busy with what they load.
fn threads(command: &Command) -> usize {
    const MOST: usize = 4;
    match command {
        Command::Serve(_) | Command::BenchWorker => {
            std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
        }
        _ => 1,
    }
}
