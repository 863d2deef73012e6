//! One suite for every transport: each test is written once, and run with every client against every server. What
//! these promise to applications, all of them promise alike.
//!
//! A transport joins with a module beside [`tokio`] and [`mio`], and lines in the macros here. The peers
//! in [`raw`] are no transports: they are written from PROTOCOL.md alone, and share no code with the project.

/// Writes functions down as the tests of one pair.
macro_rules! of_a_pair {
    ($module:ident, $client:ident, $server:ident; $($test:ident),* $(,)?) => {
        mod $module {
            use crate::conformance::world::Pair;

            const PAIR: Pair = Pair {
                client: &crate::conformance::$client::TRANSPORT,
                server: &crate::conformance::$server::TRANSPORT,
            };

            $(
                #[test]
                fn $test() {
                    super::$test(&PAIR);
                }
            )*
        }
    };
}

/// Writes functions down as tests of each client with each server.
macro_rules! for_every_pair {
    ($($test:ident),* $(,)?) => {
        of_a_pair!(tokio_tokio, tokio, tokio; $($test),*);
        of_a_pair!(tokio_mio, tokio, mio; $($test),*);
        of_a_pair!(mio_tokio, mio, tokio; $($test),*);
        of_a_pair!(mio_mio, mio, mio; $($test),*);
    };
}

/// Writes functions down as tests of the raw client with each server.
macro_rules! for_every_server {
    ($($test:ident),* $(,)?) => {
        of_a_pair!(raw_tokio, tokio, tokio; $($test),*);
        of_a_pair!(raw_mio, mio, mio; $($test),*);
    };
}

/// Writes functions down as tests of each client with the raw server.
macro_rules! for_every_client {
    ($($test:ident),* $(,)?) => {
        of_a_pair!(tokio_raw, tokio, tokio; $($test),*);
        of_a_pair!(mio_raw, mio, mio; $($test),*);
    };
}

#[macro_use]
mod transport;

mod blobs;
mod endings;
mod limits;
mod mio;
mod raw;
mod recovery;
mod soak;
mod stalling;
mod tokio;
mod traffic;
mod transactions;
mod world;
