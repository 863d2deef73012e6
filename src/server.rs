//! A server in this process: a store, and a transport that listens.

use std::path::Path;
use std::sync::Arc;

use blobferry_store::{SqliteStore, StoreConfig};

use crate::failure::Failure;
use crate::transport::{Listener, Transport};

/// A running server.
pub(crate) struct Serving {
    listener: Listener,
}

impl Serving {
    /// Opens the store of a directory, and listens. It refuses a directory that another server has
    /// open.
    ///
    /// # Errors
    /// [`Failure::Store`]; [`Failure::System`] if it cannot listen on the address.
    pub(crate) async fn start(transport: Transport, dir: &Path, listen: &str) -> Result<Serving, Failure> {
        let store = SqliteStore::open(dir, StoreConfig::default())?;
        let listener = Listener::bind(transport, listen, Arc::new(store)).await;
        let listener =
            listener.map_err(|source| Failure::System { doing: format!("listening on {listen}"), source })?;
        Ok(Serving { listener })
    }

    /// Returns the listening address, with the actual port.
    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().to_string()
    }

    /// Finishes the requests under way, and stops.
    pub(crate) async fn stop(self) {
        self.listener.stop().await;
    }
}
