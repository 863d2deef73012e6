//! Server and async client on tokio.
