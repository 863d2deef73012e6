//! The end of writing: after a sync has failed, nobody knows what is on the disk.
//!
//! The system reports a failed write-back once, and may then call the lost pages clean: a second sync on the same
//! descriptor succeeds although the bytes are gone. So a failed sync is never tried again; the store goes on
//! reading, and the next open finds out what is there.

use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use blobferry_protocol::RequestError;

/// Set once, for good, with the reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Poison(Arc<OnceLock<String>>);

impl Poison {
    /// Refuses to write if a sync has failed before.
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        match self.0.get() {
            Some(reason) => Err(RequestError::ReadOnly { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// From now on nothing is written. The first reason counts.
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
