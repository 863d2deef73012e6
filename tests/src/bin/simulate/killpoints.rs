//! `simulate killpoints`

use std::process::ExitCode;

use blobferry_tests::killpoints::{self, Options};
use blobferry_tests::workload::Role;

use crate::outcome::enclosed;

/// Kills a process right before each of its system calls, one after the other.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// In this role only: server, recovery, pack or client.
    #[arg(long)]
    role: Option<Role>,
    /// At this system call only.
    #[arg(long, value_name = "NAME")]
    syscall: Option<String>,
    /// At this one of its calls only, from 1 on.
    #[arg(long, value_name = "N", requires = "syscall")]
    number: Option<u32>,
    /// Some of the calls of each name, and not all of them.
    #[arg(long)]
    short: bool,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let Args { role, syscall: call, number, short } = args;
    let options = Options { role, call, number, short };
    enclosed(|enclosure, runner| killpoints::run(enclosure, runner, &options))
}
