//! The runner of everything that takes a seed, a machine of one's own, or patience: see `tests/README.md`.

mod ioerrors;
mod killpoints;
mod mutants;
mod outcome;
mod powercut;
mod seeds;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tries blobferry under simulated and real misfortunes
#[derive(Debug, Parser)]
#[command(name = "simulate", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    seeds: seeds::Seeds,
}

#[derive(Debug, Subcommand)]
enum Command {
    Powercut(powercut::Args),
    Killpoints(killpoints::Args),
    Ioerrors(ioerrors::Args),
    /// Plant bugs, and see that they are caught
    Mutants(mutants::Mutants),
    #[command(hide = true)]
    Workload(workload::Args),
}

fn main() -> ExitCode {
    #[cfg(blobferry_planted)]
    outcome::plant();
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Powercut(args)) => powercut::run(&args),
        Some(Command::Killpoints(args)) => killpoints::run(args),
        Some(Command::Ioerrors(args)) => ioerrors::run(args),
        Some(Command::Mutants(mutants)) => mutants.run(),
        Some(Command::Workload(args)) => workload::run(&args),
        None => cli.seeds.run(),
    }
}
