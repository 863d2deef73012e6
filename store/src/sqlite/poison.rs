//! Ends all writing after a failed sync, since it is unknown then what is on the disk.
//!
//! The system reports a failed write-back once and may then treat the lost pages as clean. A second
//! sync on the same descriptor succeeds although the bytes are lost. So a failed sync is never
//! repeated. Reads go on, and the next open finds out what is on the disk.

use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use blobferry_protocol::RequestError;

/// The reason why writing has ended. Once set, it stays. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Poison(Arc<OnceLock<String>>);

impl Poison {
    /// Fails if a sync has failed before.
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        match self.0.get() {
            Some(reason) => Err(RequestError::ReadOnly { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Ends all writing. The first reason counts. Returns the error for the client.
    pub(crate) fn set(&self, error: &dyn Display) -> RequestError {
        let reason = self.0.get_or_init(|| {
            tracing::error!(%error, "the disk has failed: no more writes until the server is started again");
            format!("the disk failed before ({error}); check it, and start the server again")
        });
        RequestError::ReadOnly { reason: reason.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let poison = Poison::default();
        assert_eq!(poison.check(), Ok(()));
        let error = poison.clone().set(&"sync of 17");
        poison.set(&"another");
        assert_eq!(poison.check(), Err(error));
    }
}
