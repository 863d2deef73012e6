//! The runner of everything that takes a seed, a machine of one's own, or patience: see `tests/README.md`.

mod ioerrors;
mod killpoints;
mod outcome;
mod powercut;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tries blobferry under simulated and real misfortunes.
#[derive(Debug, Parser)]
#[command(name = "simulate", arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Powercut(powercut::Args),
    Killpoints(killpoints::Args),
    Ioerrors(ioerrors::Args),
    #[command(hide = true)]
    Workload(workload::Args),
}

fn main() -> ExitCode {
    #[cfg(blobferry_planted)]
    outcome::plant();
    match Args::parse().command {
        Command::Powercut(args) => powercut::run(&args),
        Command::Killpoints(args) => killpoints::run(args),
        Command::Ioerrors(args) => ioerrors::run(args),
        Command::Workload(args) => workload::run(&args),
    }
}
