//! Looking at what is left when something has happened: recovery first, then everything that was promised.

mod cache;
mod server;

pub(crate) use self::cache::examine_cache;
pub(crate) use self::server::examine_server;
