//! One suite for all transports: each test is written once and runs with every client against every
//! server.
//!
//! To add a transport, write a module like [`tokio`] and [`mio`], and add lines to the macros here.
//! The peers in [`raw`] are not transports: they are written from PROTOCOL.md alone and share no
//! code with the project.

/// Expands functions to the tests of one pair.
macro_rules! tests_of_pair {
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

/// Expands functions to tests of each client with each server.
macro_rules! for_every_pair {
    ($($test:ident),* $(,)?) => {
        tests_of_pair!(tokio_tokio, tokio, tokio; $($test),*);
        tests_of_pair!(tokio_mio, tokio, mio; $($test),*);
        tests_of_pair!(mio_tokio, mio, tokio; $($test),*);
        tests_of_pair!(mio_mio, mio, mio; $($test),*);
    };
}

/// Expands functions to tests of the raw client with each server.
macro_rules! for_every_server {
    ($($test:ident),* $(,)?) => {
        tests_of_pair!(raw_tokio, tokio, tokio; $($test),*);
        tests_of_pair!(raw_mio, mio, mio; $($test),*);
    };
}

/// Expands functions to tests of each client with the raw server.
macro_rules! for_every_client {
    ($($test:ident),* $(,)?) => {
        tests_of_pair!(tokio_raw, tokio, tokio; $($test),*);
        tests_of_pair!(mio_raw, mio, mio; $($test),*);
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
