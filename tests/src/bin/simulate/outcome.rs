//! What all commands that need a mount namespace share.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use blobferry_tests::Failure;
use blobferry_tests::mount_namespace::MountNamespace;

/// Runs a command in a mount namespace, and prints its report. A test that cannot run here is no
/// failure.
pub(crate) fn in_namespace<R: Display>(
    run: impl FnOnce(&MountNamespace, &Path) -> Result<R, Failure>,
) -> ExitCode {
    let done = MountNamespace::enter().and_then(|namespace| {
        let runner = std::env::current_exe().map_err(|error| Failure::Unable(error.to_string()))?;
        run(&namespace, &runner)
    });
    match done {
        Ok(report) => println!("{report}"),
        Err(failure @ Failure::Unable(_)) => println!("{failure}"),
        Err(failure) => {
            eprintln!("simulate: {failure}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Plants the bug that the environment names, in this process and in its children.
#[cfg(feature = "planted")]
pub(crate) fn plant() {
    use blobferry_protocol::planted::{Bug, plant};
    let name = std::env::var(blobferry_tests::PLANTED).unwrap_or_default();
    plant(Bug::ALL.iter().copied().find(|bug| bug.name() == name));
}
