//! The server on this side: the one place that knows the store and the server of the transport.

use std::path::Path;
use std::sync::Arc;

use blobferry_store::{EmbeddedStore, StoreConfig};
use blobferry_transport_tokio::{Server, ServerConfig};

use crate::failure::Failure;

/// A server that is running.
pub(crate) struct Serving {
    server: Server,
}

impl Serving {
    /// Opens the store of a directory and listens. A directory that another server has open is refused.
    ///
    /// # Errors
    /// [`Failure::Store`], or [`Failure::System`] where the address can not be listened on.
    pub(crate) async fn start(dir: &Path, listen: &str) -> Result<Serving, Failure> {
        let store = EmbeddedStore::open(dir, StoreConfig::default())?;
        let server = Server::bind(listen, Arc::new(store), ServerConfig::default()).await;
        let server =
            server.map_err(|source| Failure::System { doing: format!("listening on {listen}"), source })?;
        Ok(Serving { server })
    }

    /// Where it listens: with the port that it really has.
    pub(crate) fn address(&self) -> String {
        self.server.local_addr().to_string()
    }

    /// Ends it: what is under way is finished.
    pub(crate) async fn stop(self) {
        self.server.stop().await;
    }
}
