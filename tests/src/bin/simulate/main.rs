//! The runner of everything that takes a seed, a machine of one's own, or patience: see `tests/README.md`.

mod mutants;
mod seeds;

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
    /// Plant bugs, and see that they are caught
    Mutants(mutants::Mutants),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Mutants(mutants)) => mutants.run(),
        None => cli.seeds.run(),
    }
}
