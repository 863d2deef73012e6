//! The command `blobferry`: publish large files atomically, and read them everywhere at local-disk speed.
//!
//! [`cli`] is what can be asked for, [`commands`] does it, [`catalog`] knows what things are called, [`remote`]
//! and [`server`] are the two ends of the connection, and [`failure`] is how it ends.

mod catalog;
mod cli;
mod commands;
mod concurrent;
mod failure;
mod human;
mod local;
mod output;
mod progress;
mod remote;
mod server;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use failure::{Exit, Failure};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match run(cli) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if !failure.quiet() {
                // Where standard error is gone, too, the exit code is all that is left to tell.
                let _ = writeln!(std::io::stderr(), "blobferry: {failure}");
            }
            failure.exit().into()
        }
    }
}

/// One thread is enough: what takes time is done by the disk and the network, and waited for.
fn run(cli: cli::Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Failure::System { doing: "starting".into(), source })?;
    runtime.block_on(commands::run(cli, std::io::stdout().lock()))
}
