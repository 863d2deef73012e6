//! A soak test: clients work while every connection is cut, reset, stalled or fragmented at some
//! byte.
//!
//! The server restarts half-way. Afterwards the store agrees with every outcome that was reported.
//! All pairs together run for a minute, or for `BLOBFERRY_SOAK_SECONDS`. The faults depend on a
//! seed, which is printed; `BLOBFERRY_SOAK_SEED` sets it. Their timing depends on the machine.

mod chaos_proxy;
mod ledger;
mod random;
mod users;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use blobferry_protocol::{Config, Oid, Outcome};
use blobferry_session::client::{ClientConfig, Reconnect};

use super::transport::Client;
use super::world::{Pair, World};
use crate::support::TEST_TIMEOUT;
use chaos_proxy::ChaosProxy;
use ledger::{Ledger, Reported};
use random::Random;
use users::Users;

for_every_pair!(soak_keeps_every_reported_outcome);

/// Returns the duration of the test for one of the four pairs, in seconds.
fn seconds() -> f64 {
    let all = std::env::var("BLOBFERRY_SOAK_SECONDS").map_or(60.0, |text| text.parse().unwrap());
    all / 4.0
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    std::env::var("BLOBFERRY_SOAK_SEED").map_or_else(|_| now() as u64, |text| text.parse().unwrap())
}

/// Returns a connection configuration that detects a silent peer within seconds.
fn short_silence_limit() -> Config {
    let (ping_after, silence_limit) = (Duration::from_millis(500), Duration::from_secs(3));
    Config { ping_after, silence_limit, ..Config::default() }
}

fn connect(world: &World, address: &str, cache: &str) -> Box<dyn Client> {
    let (first, longest) = (Duration::from_millis(5), Duration::from_millis(200));
    let reconnect = Some(Reconnect { first, longest, unreachable_timeout: Duration::from_secs(300) });
    let config = ClientConfig { connection: short_silence_limit(), reconnect, ..ClientConfig::default() };
    loop {
        // Clients do not retry their first connection themselves.
        if let Ok(client) = world.connect(address, world.cache(cache), config.clone()) {
            return client;
        }
    }
}

fn soak_keeps_every_reported_outcome(pair: &Pair) {
    let seed = seed();
    println!("seed {seed}");
    let mut world = World::serving(pair, |config| config.connection = short_silence_limit());
    std::fs::create_dir(world.path("files")).unwrap();
    let users = Users {
        ledger: Ledger::default(),
        files: world.path("files"),
        shared: world.client("direct").new_oids(3).unwrap(),
        restarts: AtomicU64::new(0),
        over: false.into(),
        counters: users::Counters::default(),
    };
    let proxy = ChaosProxy::to(world.address(), seed);
    let clients: Vec<_> =
        ["shared", "shared", "own"].map(|cache| connect(&world, &proxy.address, cache)).into();
    std::thread::scope(|scope| {
        for (n, client) in clients.iter().enumerate() {
            let random = |role| Random::new(seed).branch(1_000_000 + 2 * n as u64 + role);
            let (users, writes, reads) = (&users, random(0), random(1));
            scope.spawn(move || users.write(&**client, writes));
            scope.spawn(move || users.read(&**client, reads));
        }
        let half = Duration::from_secs_f64(seconds() / 2.0);
        // The duration is fixed; no event ends it.
        std::thread::sleep(half);
        users.restarts.fetch_add(1, Ordering::SeqCst);
        proxy.set_server(None);
        world.take_server().stop();
        world.serve_again();
        proxy.set_server(Some(world.address()));
        users.restarts.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(half);
        proxy.disable_faults(true);
        users.over.store(true, Ordering::SeqCst);
    });
    check_outcomes(&world, &users);
    let fresh = world.client("fresh");
    for client in clients.iter().chain([&fresh]) {
        check_committed(&**client, &users.ledger);
    }
    check_no_others(&*fresh, &users.ledger);
    println!("{:?}\n{:?}", proxy.counters(), users.counters);
    let ended = proxy.counters().amid_blobs.load(Ordering::Relaxed);
    let resumed = &users.counters;
    let resumed = [&resumed.resumed_uploads, &resumed.resumed_downloads].map(|n| n.load(Ordering::Relaxed));
    assert!(
        ended > 0 && resumed.iter().sum::<u64>() > 0,
        "too few faults during blobs: {ended}, {resumed:?}"
    );

    clients.into_iter().chain([fresh]).for_each(|client| client.close());
    world.take_server().stop();
    world.wait_for_no_leftovers();
    for cache in ["shared", "own", "fresh", "direct"] {
        wait_for_clean_cache(&world.path(cache));
    }
    world.serve_again();
    check_committed(&*world.client("another"), &users.ledger);
}

/// Queries the outcome of every transaction and compares it with the reported one.
fn check_outcomes(world: &World, users: &Users) {
    let direct = world.client("direct");
    for (number, attempt) in users.ledger.attempts().into_iter().enumerate() {
        match (attempt.outcome, direct.outcome(attempt.txn).unwrap()) {
            (Reported::Committed(reported), Outcome::Committed { tid }) => {
                assert_eq!(reported, tid, "{attempt:?}")
            }
            (Reported::NotCommitted, Outcome::NotCommitted) => {}
            (Reported::Unknown, Outcome::Committed { tid }) => {
                users.ledger.end(number, Reported::Committed(tid))
            }
            (Reported::Unknown, Outcome::NotCommitted) => users.ledger.end(number, Reported::NotCommitted),
            (reported, actual) => {
                panic!("{reported:?} was reported, but the outcome is {actual:?}: {attempt:?}")
            }
        }
    }
}

/// Checks that every committed revision can be loaded unchanged.
fn check_committed(client: &dyn Client, ledger: &Ledger) {
    for (blob, content) in ledger.committed() {
        ledger.check(blob.oid, &client.load_serial(blob.oid, blob.tid).unwrap());
        if content.size.is_some() {
            let cached = client.load_blob(blob).unwrap();
            assert!(std::fs::read(cached.path()).unwrap() == content.bytes(), "{blob:?} is not {content:?}");
        }
    }
}

/// Checks that no revisions exist besides the committed ones.
fn check_no_others(client: &dyn Client, ledger: &Ledger) {
    let known = ledger.committed();
    let attempts = ledger.attempts();
    let oids: BTreeSet<Oid> = attempts.iter().flat_map(|attempt| attempt.contents.keys().copied()).collect();
    for oid in oids {
        let committed = known.keys().filter(|blob| blob.oid == oid).count();
        let found = client.history(oid, 1000).map_or(0, |history| history.len());
        assert_eq!(found, committed.min(1000), "object {oid}");
    }
}

/// Waits until a cache has no unfinished file and no held lock. Its clients' last threads may still
/// be ending.
fn wait_for_clean_cache(cache: &Path) {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let left = || {
        let mut left = names(&cache.join("tmp"));
        left.retain(|name| ![".lock", ".room", "partial"].contains(&name.as_str()));
        left.extend(names(&cache.join("tmp/partial")));
        left
    };
    let last = Instant::now() + TEST_TIMEOUT;
    while !left().is_empty() {
        assert!(Instant::now() < last, "{:?} is left", left());
        std::thread::yield_now();
    }
    for bucket in names(cache) {
        if let Ok(lock) = std::fs::File::open(cache.join(bucket).join(".lock")) {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        }
    }
}
