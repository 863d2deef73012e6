//! `simulate powercut`

use std::process::ExitCode;

use blobferry_tests::powercut::{self, Options};
use blobferry_tests::volume::Kind;

use crate::outcome::in_namespace;

/// Cuts the power of a file system on which a server and a cache are at work, again and again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The number of cuts.
    #[arg(long, default_value_t = 100)]
    cycles: u64,
    /// The file system: ext4 or xfs.
    #[arg(long, default_value = "ext4")]
    fs: Kind,
    /// The seed of the first cycle; each cycle has the next seed.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    from: u64,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let options = Options { cycles: args.cycles, kind: args.fs, from: args.from };
    in_namespace(|namespace, runner| powercut::run(namespace, runner, options))
}
