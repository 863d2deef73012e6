//! `simulate workload`: the process to which things happen. The other commands start it.

use std::path::PathBuf;
use std::process::ExitCode;

use blobferry_tests::workload::{Role, play};

/// Does something with a store and a cache, and says what.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What.
    #[arg(long)]
    role: Role,
    /// The seed of what is done at random.
    #[arg(long)]
    seed: u64,
    /// Where the store and the cache are.
    dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    play(args.role, &args.dir, args.seed);
    ExitCode::SUCCESS
}
