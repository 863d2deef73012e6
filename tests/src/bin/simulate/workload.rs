//! `simulate workload`: the process that is killed or fails. The other commands start it.

use std::path::PathBuf;
use std::process::ExitCode;

use blobferry_tests::workload::{Role, play};

/// Uses a store and a cache, and reports what happens.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The role to play.
    #[arg(long)]
    role: Role,
    /// The seed of random choices.
    #[arg(long)]
    seed: u64,
    /// The directory of the store and the cache.
    dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    play(args.role, &args.dir, args.seed);
    ExitCode::SUCCESS
}
