//! Running the command.

use std::process::{Command, Output};

/// The command, without the settings of whoever runs the tests.
pub(crate) fn blobferry(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blobferry"));
    command.args(arguments).env_remove("BLOBFERRY_SERVER").env_remove("BLOBFERRY_CACHE");
    command
}

/// Runs the command to its end; its exit code, standard output, and standard error.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = blobferry(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}
