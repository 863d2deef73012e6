//! `simulate ioerrors`

use std::process::ExitCode;

use blobferry_tests::ioerrors::{self, Options};
use blobferry_tests::workload::Role;

use crate::outcome::enclosed;

/// Has each system call of a process fail, one after the other, and has writes be short.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// In this role only: server, recovery, pack or client.
    #[arg(long)]
    role: Option<Role>,
    /// At this system call only; `limit` for short writes.
    #[arg(long, value_name = "NAME")]
    syscall: Option<String>,
    /// At this one of its calls only, from 1 on; with this limit only.
    #[arg(long, value_name = "N", requires = "syscall")]
    number: Option<u32>,
    /// Some of the calls of each name, and not all of them.
    #[arg(long)]
    short: bool,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let Args { role, syscall: call, number, short } = args;
    let options = Options { role, call, number, short };
    enclosed(|enclosure, runner| ioerrors::run(enclosure, runner, &options))
}
