//! The command `simulate`: long tests that take a seed, a machine and time. See `tests/README.md`.

mod mutants;
mod outcome;
mod points;
mod powercut;
mod seeds;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tries blobferry under simulated and real faults
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
    /// Kill a process right before each of its system calls, one after the other
    Killpoints(points::Points),
    /// Have each system call of a process fail, one after the other, and have writes be short
    Ioerrors(points::Points),
    /// Plant bugs, and see that they are caught
    Mutants(mutants::Mutants),
    #[command(hide = true)]
    Workload(workload::Args),
}

fn main() -> ExitCode {
    #[cfg(feature = "planted")]
    outcome::plant();
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Powercut(args)) => powercut::run(&args),
        Some(Command::Killpoints(args)) => args.kill(),
        Some(Command::Ioerrors(args)) => args.fail(),
        Some(Command::Mutants(mutants)) => mutants.run(),
        Some(Command::Workload(args)) => workload::run(&args),
        None => cli.seeds.run(),
    }
}
