//! The transports that the command can use: the one place that knows their clients and servers.
//!
//! Everything above works with a [`Session`], which is the same for all of them.

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
    /// What it is called on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Mio => "mio",
            Transport::Tokio => "tokio",
        }
    }
}

/// A connection to a server. Dropped without [`Link::close`], what is under way is given up.
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

    /// The conversation, whoever carries it.
    pub(crate) fn session(&self) -> &Session {
        match self {
            Link::Mio(client) => client.session(),
            Link::Tokio(client) => client.session(),
        }
    }

    /// Ends the conversation when what is under way has come to its end.
    pub(crate) async fn close(self) {
        match self {
            Link::Tokio(client) => client.close().await,
            // A thread that has panicked has ended, too.
            Link::Mio(client) => drop(blocking(move || client.close()).await),
        }
    }
}

/// A server that is running.
pub(crate) enum Listener {
    Mio(mio::Server),
    Tokio(tokio_transport::Server),
}

impl Listener {
    /// Listens, and answers from the store.
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

    /// Where it listens: with the port that it really has.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        match self {
            Listener::Mio(server) => server.local_addr(),
            Listener::Tokio(server) => server.local_addr(),
        }
    }

    /// Ends it: what is under way is finished.
    pub(crate) async fn stop(self) {
        match self {
            Listener::Tokio(server) => server.stop().await,
            // A thread that has panicked has ended, too.
            Listener::Mio(server) => drop(blocking(move || server.stop()).await),
        }
    }
}

/// Does what blocks where it may.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(job).await.map_err(io::Error::other)
}
