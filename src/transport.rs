//! The transports of the command. Only this file knows their clients and servers.
//!
//! Everything above works with a [`Session`], which is the same for all transports.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use blobferry_cache::Cache;
use blobferry_session::client::{ClientConfig, ConnectError, Session};
use blobferry_session::server::ServerConfig;
use blobferry_store::Store;
use blobferry_transport_mio as mio;
use blobferry_transport_tokio as tokio_transport;
use clap::ValueEnum;
use tokio::task::spawn_blocking;

/// A transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Threads that wait for readiness themselves, without a runtime.
    Mio,
    /// Tasks on the tokio runtime.
    #[default]
    Tokio,
}

impl Transport {
    /// Returns the transport's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Mio => "mio",
            Transport::Tokio => "tokio",
        }
    }
}

/// A connection to a server. Dropping it without [`Link::close`] abandons the requests under way.
pub(crate) enum Link {
    Mio(mio::Client),
    Tokio(tokio_transport::Client),
}

impl Link {
    /// Connects, and returns when the handshake is done.
    pub(crate) async fn connect(
        transport: Transport,
        server: &str,
        cache: Cache,
    ) -> Result<Link, ConnectError> {
        let config = ClientConfig::default();
        match transport {
            Transport::Tokio => {
                tokio_transport::Client::connect(server, cache, config).await.map(Link::Tokio)
            }
            Transport::Mio => {
                let address = server.to_owned();
                let connect = move || mio::Client::connect(address, cache, config).map(Link::Mio);
                let failed = |source| ConnectError::Connect { address: server.to_owned(), source };
                blocking(connect).await.unwrap_or_else(|error| Err(failed(error)))
            }
        }
    }

    /// Returns the session, which is independent of the transport.
    pub(crate) fn session(&self) -> &Session {
        match self {
            Link::Mio(client) => client.session(),
            Link::Tokio(client) => client.session(),
        }
    }

    /// Finishes the requests under way, and closes the connection.
    pub(crate) async fn close(self) {
        match self {
            Link::Tokio(client) => client.close().await,
            // A thread that panicked has ended as well.
            Link::Mio(client) => drop(blocking(move || client.close()).await),
        }
    }
}

/// A running server.
pub(crate) enum Listener {
    Mio(mio::Server),
    Tokio(tokio_transport::Server),
}

impl Listener {
    /// Listens, and answers requests from the store.
    pub(crate) async fn bind(
        transport: Transport,
        listen: &str,
        store: Arc<dyn Store>,
    ) -> io::Result<Listener> {
        let config = ServerConfig::default();
        match transport {
            Transport::Tokio => {
                tokio_transport::Server::bind(listen, store, config).await.map(Listener::Tokio)
            }
            Transport::Mio => {
                let listen = listen.to_owned();
                blocking(move || mio::Server::bind(listen, store, config).map(Listener::Mio)).await?
            }
        }
    }

    /// Returns the listening address, with the actual port.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        match self {
            Listener::Mio(server) => server.local_addr(),
            Listener::Tokio(server) => server.local_addr(),
        }
    }

    /// Finishes the requests under way, and stops.
    pub(crate) async fn stop(self) {
        match self {
            Listener::Tokio(server) => server.stop().await,
            // A thread that panicked has ended as well.
            Listener::Mio(server) => drop(blocking(move || server.stop()).await),
        }
    }
}

/// Runs a blocking job on the pool.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(job).await.map_err(io::Error::other)
}
