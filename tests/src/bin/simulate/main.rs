//! The runner of everything that takes a seed, a machine of one's own, or patience: see `tests/README.md`.

use clap::{Parser, Subcommand};

/// Tries blobferry under simulated and real misfortunes.
#[derive(Debug, Parser)]
#[command(name = "simulate")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {}

fn main() {
    let args = Args::parse();
    match args.command {
        Some(command) => match command {},
        None => {}
    }
}
