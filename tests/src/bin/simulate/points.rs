//! `simulate killpoints` and `simulate ioerrors`: a fault at each system call of a process.

use std::process::ExitCode;

use blobferry_tests::killpoints::Options;
use blobferry_tests::workload::Role;
use blobferry_tests::{ioerrors, killpoints};

use crate::outcome::in_namespace;

/// Selects system calls.
#[derive(Debug, clap::Args)]
pub(crate) struct Points {
    /// In this role only: server, recovery, pack or client
    #[arg(long)]
    role: Option<Role>,
    /// At this system call only; for `ioerrors` also `limit`, for short writes
    #[arg(long, value_name = "NAME")]
    syscall: Option<String>,
    /// At this one of its calls only, from 1 on; with this limit only
    #[arg(long, value_name = "N", requires = "syscall")]
    number: Option<u32>,
    /// Some of the calls of each name, and not all of them
    #[arg(long)]
    short: bool,
}

impl Points {
    fn options(self) -> Options {
        let Points { role, syscall: call, number, short } = self;
        Options { role, call, number, short }
    }

    /// Kills a process right before each of them.
    pub(crate) fn kill(self) -> ExitCode {
        in_namespace(|namespace, runner| killpoints::run(namespace, runner, &self.options()))
    }

    /// Lets each of them fail.
    pub(crate) fn fail(self) -> ExitCode {
        in_namespace(|namespace, runner| ioerrors::run(namespace, runner, &self.options()))
    }
}
