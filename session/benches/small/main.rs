//! What small requests cost a server without a socket: commits and loads of 10 KiB blobs and of objects.
//!
//! `cargo bench -p blobferry-session --bench small` drives a client machine and a server handler in one thread. For each kind of
//! work it prints the rate, the time of the driving thread, the time of all other threads, and how often a thread slept.
//!
//! Arguments: `commit`, `load`, `object` and `read` choose the work; a number is a count of callers; `rows=1000000` first fills the
//! store with that many small blobs; `bytes=1000` sets their size. The environment variable `BENCH_DIR` is the store's directory.

#![expect(clippy::expect_used, reason = "a benchmark ends with its first error")]

mod pair;

use std::sync::Arc;
use std::time::{Duration, Instant};

use blobferry_protocol::{BlobId, Digest, Oid, Tid, TxnId, TxnMeta};
use blobferry_session::server::{ServerConfig, ServerCore};
use blobferry_store::{Done, SqliteStore, Store, StoreConfig};

use self::pair::{Ask, Pair};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SMALL: usize = 10 << 10;
/// How long each kind of work is measured.
const TIME: Duration = Duration::from_secs(2);
/// Objects of one transaction that fills a store.
const AT_ONCE: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Commit,
    Object,
    Load,
    Read,
}

const ALL: [(&str, Work); 4] =
    [("commit", Work::Commit), ("object", Work::Object), ("load", Work::Load), ("read", Work::Read)];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let number = |name| words.iter().find_map(|word| word.strip_prefix(name)?.parse().ok());
    let (rows, size) = (number("rows=").unwrap_or(0), number("bytes=").unwrap_or(SMALL as u64) as usize);
    let mut callers: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    if callers.is_empty() {
        callers = vec![1, 16, 64];
    }
    let chosen = |name: &str| words.iter().any(|word| word == name);
    let none = !ALL.iter().any(|(name, _)| chosen(name));
    let home = tempfile::tempdir_in(std::env::var("BENCH_DIR").unwrap_or_else(|_| ".".into()))?;
    let newest = fill(home.path(), rows, size)?;
    let start = Instant::now();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(home.path(), StoreConfig::default())?);
    println!("{rows} small blobs; opened in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    for (name, work) in ALL.into_iter().filter(|(name, _)| none || chosen(name)) {
        for callers in callers.iter().copied() {
            measure(&store, name, work, callers, size, &newest)?;
        }
    }
    Ok(())
}

/// Revisions that can be loaded: the `n`th object's.
#[derive(Clone, Debug)]
struct Newest {
    /// Oids from 1 on, as many at each tid as one transaction has.
    tids: Vec<Tid>,
}

impl Newest {
    fn blob(&self, n: u64) -> BlobId {
        let at = (n / AT_ONCE) as usize % self.tids.len();
        BlobId { oid: Oid(at as u64 * AT_ONCE + n % AT_ONCE + 1), tid: self.tids[at] }
    }
}

fn wait<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T> {
    let (answer, answers) = std::sync::mpsc::channel();
    ask(Box::new(move |result| _ = answer.send(result)));
    Ok(answers.recv()??)
}

/// Fills a store with objects that have a small blob each, at least with some.
fn fill(dir: &std::path::Path, rows: u64, size: usize) -> Result<Newest> {
    let store = SqliteStore::open(dir, StoreConfig::default())?;
    let mut tids = Vec::new();
    let start = Instant::now();
    for at in 0..rows.div_ceil(AT_ONCE).max(1) {
        let txn = name(at);
        store.begin(txn, TxnMeta { user: b"bench".to_vec(), description: b"fill".to_vec() })?;
        for n in 0..AT_ONCE {
            let oid = at * AT_ONCE + n + 1;
            let mut bytes = vec![7; size];
            bytes[..8].copy_from_slice(&oid.to_le_bytes());
            let mut stage = store.stage(size as u64)?;
            stage.write(&bytes)?;
            let staged = stage.complete(Digest(*blake3::hash(&bytes).as_bytes()))?;
            store.store_blob(txn, Oid(oid), Tid::ZERO, vec![1; 100], staged)?;
        }
        wait(|done| store.vote(txn, done))?;
        tids.push(wait(|done| store.finish(txn, done))?);
    }
    store.close();
    if rows > 0 {
        println!("filled with blobs of {size} bytes in {:.1} s", start.elapsed().as_secs_f64());
    }
    Ok(Newest { tids })
}

/// A transaction's name, which looks like chance.
fn name(n: u64) -> TxnId {
    let mut name = [0; 16];
    name.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
    TxnId(name)
}

fn measure(
    store: &Arc<dyn Store>,
    what: &str,
    work: Work,
    callers: usize,
    size: usize,
    newest: &Newest,
) -> Result<()> {
    static ROUND: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let service = ServerCore::new(store.clone(), ServerConfig::default());
    let mut pair = Pair::connect(&service, vec![7; size]);
    let round = ROUND.fetch_add(1, std::sync::atomic::Ordering::Relaxed) << 32;
    let first = store.new_oids(callers as u32)?.0;
    // What each caller has committed last.
    let mut bases = vec![Tid::ZERO; callers];
    let mut asked = 0;
    let mut ask = |pair: &mut Pair, caller: usize, base: Tid| {
        asked += 1;
        let (txn, oid) = (name(round + asked), Oid(first.0 + caller as u64));
        match work {
            Work::Commit => pair.ask(caller, Ask::Commit { txn, oid, base, blob: true }),
            Work::Object => pair.ask(caller, Ask::Commit { txn, oid, base, blob: false }),
            // By chance, as far as a cache can tell.
            Work::Load => pair.ask(caller, Ask::Load(newest.blob(asked * 7_368_787))),
            Work::Read => pair.ask(caller, Ask::Read(newest.blob(asked * 7_368_787).oid)),
        }
    };
    (0..callers).for_each(|caller| ask(&mut pair, caller, Tid::ZERO));
    let mut go_on = |pair: &mut Pair, until: Instant| {
        let mut done = 0;
        while Instant::now() < until {
            for (caller, tid) in pair.next() {
                bases[caller] = tid.unwrap_or(bases[caller]);
                done += 1;
                ask(pair, caller, bases[caller]);
            }
        }
        done
    };
    go_on(&mut pair, Instant::now() + TIME / 10);
    let before = (pair.took, pair::Threads::now(), store.counts(), Instant::now());
    let done = f64::from(go_on(&mut pair, before.3 + TIME));
    let time = before.3.elapsed();
    let (counts, threads) = (store.counts(), pair::Threads::now().since(&before.1));
    let each = |time: Duration| time.as_secs_f64() * 1e6 / done;
    print!(
        "{what:>6} {callers:3} callers {:7.0}/s   session {:5.1} µs   others {:5.1} µs   slept {:5.2} + {:4.2}",
        done / time.as_secs_f64(),
        each(pair.took - before.0),
        each(threads.others),
        threads.slept_others as f64 / done,
        threads.slept as f64 / done,
    );
    let (commits, batches) = (counts.commits - before.2.commits, counts.batches - before.2.batches);
    if commits > 0 {
        let syncs = (counts.syncs - before.2.syncs) as f64;
        print!(
            "   {:5.1} commits and {:.2} syncs a batch",
            commits as f64 / batches as f64,
            syncs / batches as f64
        );
    }
    println!();
    Ok(())
}
