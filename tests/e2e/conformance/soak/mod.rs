//! A storm: many clients at work while every connection is cut, reset, stalled or crumbled at some byte, and the server is
//! started again in the middle of it. Afterwards everything is as everybody was told.
//!
//! A minute of it, all pairs together; `BLOBFERRY_SOAK_SECONDS` says how long else. The proxy follows from a seed, which
//! is printed, and which `BLOBFERRY_SOAK_SEED` gives again; when what happens depends on the machine.

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
use chaos_proxy::ChaosProxy;
use ledger::{Fate, Ledger};
use random::Random;
use users::Users;

for_every_pair!(soak_keeps_every_reported_outcome);

/// The seconds that one of the four pairs is out in the storm.
fn seconds() -> f64 {
    let all = std::env::var("BLOBFERRY_SOAK_SECONDS").map_or(60.0, |text| text.parse().unwrap());
    all / 4.0
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    std::env::var("BLOBFERRY_SOAK_SEED").map_or_else(|_| now() as u64, |text| text.parse().unwrap())
}

/// Who hears nothing is sure soon that nobody is there.
fn impatient() -> Config {
    let (ping_after, silence_limit) = (Duration::from_millis(500), Duration::from_secs(3));
    Config { ping_after, silence_limit, ..Config::default() }
}

fn connect(world: &World, address: &str, cache: &str) -> Box<dyn Client> {
    let (first, longest) = (Duration::from_millis(5), Duration::from_millis(200));
    let reconnect = Some(Reconnect { first, longest, patience: Duration::from_secs(300) });
    let config = ClientConfig { connection: impatient(), reconnect, ..ClientConfig::default() };
    loop {
        // The first connection is the user's own affair.
        if let Ok(client) = world.connect(address, world.cache(cache), config.clone()) {
            return client;
        }
    }
}

fn soak_keeps_every_reported_outcome(pair: &Pair) {
    let seed = seed();
    println!("seed {seed}");
    let mut world = World::serving(pair, |config| config.connection = impatient());
    std::fs::create_dir(world.path("files")).unwrap();
    let users = Users {
        ledger: Ledger::default(),
        files: world.path("files"),
        shared: world.client("calm").new_oids(3).unwrap(),
        era: AtomicU64::new(0),
        over: false.into(),
        tally: users::Tally::default(),
    };
    let proxy = ChaosProxy::before(world.address(), seed);
    let clients: Vec<_> =
        ["shared", "shared", "own"].map(|cache| connect(&world, &proxy.address, cache)).into();
    std::thread::scope(|scope| {
        for (n, client) in clients.iter().enumerate() {
            let random = |who| Random::new(seed).branch(1_000_000 + 2 * n as u64 + who);
            let (users, writes, reads) = (&users, random(0), random(1));
            scope.spawn(move || users.write(&**client, writes));
            scope.spawn(move || users.read(&**client, reads));
        }
        let half = Duration::from_secs_f64(seconds() / 2.0);
        // It lasts as long as it lasts: nothing waits for it.
        std::thread::sleep(half);
        users.era.fetch_add(1, Ordering::SeqCst);
        proxy.set_server(None);
        world.take_server().stop();
        world.serve_again();
        proxy.set_server(Some(world.address()));
        users.era.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(half);
        proxy.calm(true);
        users.over.store(true, Ordering::SeqCst);
    });
    settle(&world, &users);
    let fresh = world.client("fresh");
    for client in clients.iter().chain([&fresh]) {
        all_is_there(&**client, &users.ledger);
    }
    nothing_else_is_there(&*fresh, &users.ledger);
    println!("{:?}\n{:?}", proxy.tally(), users.tally);
    let ended = proxy.tally().amid_blobs.load(Ordering::Relaxed);
    let resumed = &users.tally;
    let resumed = [&resumed.resumed_uploads, &resumed.resumed_downloads].map(|n| n.load(Ordering::Relaxed));
    assert!(ended > 0 && resumed.iter().sum::<u64>() > 0, "the proxy was too good: {ended}, {resumed:?}");

    clients.into_iter().chain([fresh]).for_each(|client| client.close());
    world.take_server().stop();
    world.wait_for_no_leftovers();
    for cache in ["shared", "own", "fresh", "calm"] {
        nothing_is_left_in(&world.path(cache));
    }
    world.serve_again();
    all_is_there(&*world.client("another"), &users.ledger);
}

/// Asks what became of every transaction, and holds it against what was said then.
fn settle(world: &World, users: &Users) {
    let calm = world.client("calm");
    for (number, attempt) in users.ledger.attempts().into_iter().enumerate() {
        match (attempt.fate, calm.outcome(attempt.txn).unwrap()) {
            (Fate::Committed(told), Outcome::Committed { tid }) => assert_eq!(told, tid, "{attempt:?}"),
            (Fate::Never, Outcome::NotCommitted) => {}
            (Fate::Unknown, Outcome::Committed { tid }) => users.ledger.end(number, Fate::Committed(tid)),
            (Fate::Unknown, Outcome::NotCommitted) => users.ledger.end(number, Fate::Never),
            (told, is) => panic!("{told:?} was told, and it is {is:?}: {attempt:?}"),
        }
    }
}

fn all_is_there(client: &dyn Client, ledger: &Ledger) {
    for (blob, thing) in ledger.committed() {
        ledger.check(blob.oid, &client.load_serial(blob.oid, blob.tid).unwrap());
        if thing.size.is_some() {
            let cached = client.load_blob(blob).unwrap();
            assert!(std::fs::read(cached.path()).unwrap() == thing.bytes(), "{blob:?} is not {thing:?}");
        }
    }
}

/// Of all objects that anybody has tried to store, only those revisions exist whose commit was told.
fn nothing_else_is_there(client: &dyn Client, ledger: &Ledger) {
    let known = ledger.committed();
    let attempts = ledger.attempts();
    let oids: BTreeSet<Oid> = attempts.iter().flat_map(|attempt| attempt.things.keys().copied()).collect();
    for oid in oids {
        let told = known.keys().filter(|blob| blob.oid == oid).count();
        let found = client.history(oid, 1000).map_or(0, |history| history.len());
        assert_eq!(found, told.min(1000), "object {oid}");
    }
}

/// No unfinished file is there, and no lock is held, as soon as the last threads of its clients are gone. Nobody sweeps up.
fn nothing_is_left_in(cache: &Path) {
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
    // A test that waits for so long waits for ever.
    let last = Instant::now() + Duration::from_secs(60);
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
