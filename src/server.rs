//! The server on this side: a store, and a transport that listens for it.

use std::path::Path;
use std::sync::Arc;

use blobferry_store::{SqliteStore, StoreConfig};

use crate::failure::Failure;
use crate::transport::{Listener, Transport};

/// A server that is running.
pub(crate) struct Serving {
    listener: Listener,
}

impl Serving {
    /// Opens the store of a directory and listens. A directory that another server has open is refused.
    ///
    /// # Errors
    /// [`Failure::Store`], or [`Failure::System`] where the address can not be listened on.
    pub(crate) async fn start(transport: Transport, dir: &Path, listen: &str) -> Result<Serving, Failure> {
        let store = SqliteStore::open(dir, StoreConfig::default())?;
        let listener = Listener::bind(transport, listen, Arc::new(store)).await;
        let listener =
            listener.map_err(|source| Failure::System { doing: format!("listening on {listen}"), source })?;
        Ok(Serving { listener })
    }

    /// Where it listens: with the port that it really has.
    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().to_string()
    }

    /// Ends it: what is under way is finished.
    pub(crate) async fn stop(self) {
        self.listener.stop().await;
    }
}
