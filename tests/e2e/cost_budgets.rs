//! Budgets of system calls, counted with `strace`, over both transports.
//!
//! The tests cover a large blob on both sides, the commit of a small blob, and its load on the
//! client. A budget applies to one chunk of 256 KiB or to one small blob. It is about twice the
//! measured number, because the kernel decides how much one call moves.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::strace::{self, Strace};
use crate::support::{Home, Ran, Serve, bytes, copy_environment};

const CHUNKS: usize = 256;
const SIZE: usize = CHUNKS * (256 << 10);

/// Number of calls by name: all, and those that moved more than 16 KiB.
#[derive(Debug, Default)]
struct Calls {
    all: BTreeMap<String, usize>,
    large: BTreeMap<String, usize>,
}

impl Calls {
    /// Counts the calls in a log of `strace -f`.
    fn of_log(log: &str) -> Calls {
        let mut calls = Calls::default();
        for line in log.lines() {
            let line = line.split_once(' ').unwrap().1.trim_start();
            // A call that is interleaved with another thread's has two lines; the second has the
            // result.
            let name = match line.strip_prefix("<... ") {
                Some(resumed) => resumed.split_whitespace().next().unwrap(),
                None if line.contains("<unfinished ...>") => continue,
                None => line.split('(').next().unwrap(),
            };
            let Some((call, result)) = line.rsplit_once(" = ") else { continue };
            let moved = result.split_whitespace().next().unwrap().parse::<i64>().unwrap_or(0);
            let name = match name {
                // A write of eight bytes to an eventfd wakes the thread that waits for events.
                "write" if moved == 8 => "wake",
                // A poll without timeout that found no event.
                "epoll_wait" if moved == 0 && call.trim_end().ends_with(", 0)") => "empty poll",
                name => name,
            };
            *calls.all.entry(name.to_owned()).or_default() += 1;
            if moved > 16 << 10 {
                *calls.large.entry(name.to_owned()).or_default() += 1;
            }
        }
        calls
    }

    fn sum(map: &BTreeMap<String, usize>, names: &[&str]) -> usize {
        names.iter().filter_map(|name| map.get(*name)).sum()
    }

    /// Asserts that these calls together number at most `budget` per chunk.
    #[track_caller]
    fn at_most(&self, budget: usize, names: &[&str]) {
        self.at_most_for(CHUNKS, budget, names);
    }

    /// Asserts that these calls together number at most `budget` per operation.
    #[track_caller]
    fn at_most_for(&self, operations: usize, budget: usize, names: &[&str]) {
        let count = Calls::sum(&self.all, names);
        assert!(count <= budget * operations, "{count} of {names:?} for {operations}: {self:?}");
    }

    /// Returns how often one of these calls moved payload.
    fn payload_calls(&self, names: &[&str]) -> usize {
        Calls::sum(&self.large, names)
    }
}

/// Options for `strace`: calls that transfer data or wait for sockets and threads.
const TRACE: &str = "trace=read,write,pread64,pwrite64,readv,writev,recvfrom,sendto,sendmsg,recvmsg,sendfile,splice,\
    epoll_wait,epoll_pwait,epoll_ctl,futex,accept4";

const READS: &[&str] = &["read", "pread64", "readv"];

/// The calls of a client that puts a large blob, of one that gets it, and of the server meanwhile.
struct Counted {
    put: Calls,
    server: Calls,
    get: Calls,
}

/// Puts and gets a large blob and counts the calls. Returns `None` if `strace` does not work here.
fn put_and_get(transport: &str) -> Option<Counted> {
    let serve = |home: &Path| Serve::start_with(&home.join("server"), &["--transport", transport]);
    let home = Home::with(serve);
    let file = home.file("large", bytes("large", SIZE));
    let strace_options = || {
        let mut strace = Command::new("strace");
        strace.args(["-e", TRACE]);
        strace
    };
    let put = home.command(&["put", "--transport", transport, &file]);
    let (output, put) = strace::run(&mut strace_options(), &put, &home.path("put.strace"))?;
    Ran::from(output).ok();

    let trace = Strace::attach(&mut strace_options(), &home.server, home.path("server.strace"))?;
    let get = home.command(&["get", "--transport", transport, "large"]);
    let (output, client) = strace::run(&mut strace_options(), &get, &home.path("client.strace"))?;
    let got = Ran::from(output).ok();
    assert_eq!(std::fs::metadata(got.trim()).unwrap().len(), SIZE as u64);
    let [put, server, get] = [put, trace.end(), client].map(|log| Calls::of_log(&log));
    Some(Counted { put, server, get })
}

fn large_blob_is_within_budget(transport: &str) {
    let Some(Counted { put, server, get }) = put_and_get(transport) else { return };
    // The storing client reads each byte once, to hash it, and never copies it to the socket.
    assert!(put.payload_calls(&["sendfile", "splice"]) >= CHUNKS / 8, "{put:?}");
    assert_eq!(put.payload_calls(&["sendto", "sendmsg", "writev"]), 0, "{put:?}");
    put.at_most(10, READS);
    put.at_most(6, &["sendfile", "splice", "sendto", "sendmsg"]);
    put.at_most(6, &["epoll_wait", "epoll_pwait", "epoll_ctl", "futex", "recvfrom"]);
    // The server hashed the blob when it arrived, so it sends the file without reading it.
    assert!(server.payload_calls(&["sendfile", "splice"]) >= CHUNKS / 8, "{server:?}");
    assert_eq!(server.payload_calls(READS), 0, "{server:?}");
    server.at_most(6, &["sendfile", "splice", "sendto", "sendmsg", "write", "wake"]);
    server.at_most(6, &["epoll_wait", "epoll_pwait", "epoll_ctl", "futex", "accept4", "recvfrom"]);
    // The loading client moves each byte twice: out of the socket and into the file.
    get.at_most(10, &["recvfrom", "read"]);
    get.at_most(10, &["write", "pwrite64"]);
    get.at_most(10, &["epoll_wait", "epoll_pwait", "epoll_ctl", "futex"]);
    assert_eq!(get.payload_calls(&["pread64", "readv"]), 0, "{get:?}");
}

#[test]
fn large_blob_over_mio_is_zero_copy_and_within_budget() {
    large_blob_is_within_budget("mio");
}

#[test]
fn large_blob_over_tokio_is_zero_copy_and_within_budget() {
    large_blob_is_within_budget("tokio");
}

/// Number of small blobs that are loaded after one in each bucket, for which the cache creates its
/// directories.
const SMALL: usize = 300;
const BUCKETS: usize = 997;

/// Returns the command of a benchmark client and a file with its one order.
fn worker(home: &Home, transport: &str, order: &Value) -> (Command, File) {
    let orders = File::open(home.file("orders", format!("{order}\n"))).unwrap();
    (home.command(&["--transport", transport, "bench-worker"]), orders)
}

fn run_order(home: &Home, transport: &str, order: &Value) -> Value {
    let (mut command, orders) = worker(home, transport, order);
    serde_json::from_str(&Ran::from(command.stdin(orders).output().unwrap()).ok()).unwrap()
}

fn loads(blobs: &[Value]) -> Value {
    let what = json!({"LoadBytes": {"blobs": blobs}});
    json!({"Call": {"what": what, "callers": 1, "time": {"secs": 600, "nanos": 0}}})
}

/// Runs an order under `strace`; returns the result and the calls, or `None` if `strace` does not
/// work here.
fn traced(home: &Home, transport: &str, order: &Value) -> Option<(Value, Calls)> {
    let (command, _) = worker(home, transport, order);
    // The program under `strace` reads its orders from a file.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" < \"$ORDERS\"", "sh"]).arg(command.get_program()).args(command.get_args());
    copy_environment(&command, &mut shell);
    shell.env("ORDERS", home.path("orders"));
    let (output, log) = strace::run(&mut Command::new("strace"), &shell, &home.path("strace"))?;
    Some((serde_json::from_str(&Ran::from(output).ok()).unwrap(), Calls::of_log(&log)))
}

fn small_load_is_within_budget(transport: &str) {
    let home = Home::with(|home| Serve::start_with(&home.join("server"), &["--transport", transport]));
    let filled = run_order(&home, transport, &json!({"Fill": {"count": BUCKETS + SMALL, "blob": 10 << 10}}));
    let oids = filled["oids"].as_array().unwrap().iter();
    let blobs: Vec<Value> = oids.map(|oid| json!({"oid": oid, "tid": filled["tid"]})).collect();
    let (first, rest) = blobs.split_at(BUCKETS);
    assert_eq!(run_order(&home, transport, &loads(first))["done"], BUCKETS);

    let Some((loaded, calls)) = traced(&home, transport, &loads(rest)) else { return };
    assert_eq!(loaded["done"], SMALL);
    // The request and its answer. The client polls 50 times before it sleeps, and 50 times more if
    // the answer arrives in two pieces: over mio for events, over tokio for bytes. Threads of the
    // runtime may wake each other.
    let polls = 100;
    calls.at_most_for(SMALL, 2, &["sendto"]);
    calls.at_most_for(SMALL, 3, &["recvfrom"]);
    calls.at_most_for(SMALL, if transport == "mio" { 1 } else { polls }, &["read"]);
    calls.at_most_for(SMALL, 4 + polls, &["epoll_wait", "epoll_pwait"]);
    calls.at_most_for(SMALL, 4, &["wake"]);
    // The claim, and the record in a segment, by which the index grows. No file is created or
    // synced. The number of records in one write depends on scheduling; in the worst case each has
    // its own.
    calls.at_most_for(SMALL, 2, &["write"]);
    calls.at_most_for(SMALL, 4, &["openat", "open"]);
    calls.at_most_for(SMALL, 8, &["flock"]);
    calls.at_most_for(SMALL, 4, &["pread64"]);
    calls.at_most_for(SMALL, 2, &["pwrite64"]);
    assert_eq!(Calls::sum(&calls.all, &["fsync", "fdatasync", "link", "linkat"]), 0, "{calls:?}");
}

#[test]
fn small_load_over_mio_is_within_budget() {
    small_load_is_within_budget("mio");
}

#[test]
fn small_load_over_tokio_is_within_budget() {
    small_load_is_within_budget("tokio");
}

fn small_commit_is_within_budget(transport: &str) {
    let home = Home::with(|home| Serve::start_with(&home.join("server"), &["--transport", transport]));
    let Some(trace) = Strace::attach(&mut Command::new("strace"), &home.server, home.path("server.strace"))
    else {
        return;
    };
    let what = json!({"CommitBlobs": {"size": 10 << 10}});
    let order = json!({"Call": {"what": what, "callers": 1, "time": {"secs": 1, "nanos": 0}}});
    let Some((ran, client)) = traced(&home, transport, &order) else { return };
    let server = Calls::of_log(&trace.end());
    let commits = usize::try_from(ran["done"].as_u64().unwrap()).unwrap();
    assert!(commits > 0, "{ran}");
    // Ten more for the handshake and the end.
    let commits = commits + 10;
    // A client does not poll for the answer to a commit, which waits for a disk.
    client.at_most_for(commits, 4, &["sendto"]);
    client.at_most_for(commits, 6, &["recvfrom", "read"]);
    client.at_most_for(commits, 6, &["epoll_wait", "epoll_pwait"]);
    client.at_most_for(commits, 1, &["empty poll"]);
    client.at_most_for(commits, 8, &["futex", "wake"]);
    assert_eq!(Calls::sum(&client.all, &["fdatasync", "pwrite64"]), 0, "{client:?}");
    server.at_most_for(commits, 4, &["recvfrom", "read"]);
    server.at_most_for(commits, 6, &["sendto"]);
    server.at_most_for(commits, 8, &["epoll_wait", "epoll_pwait"]);
    server.at_most_for(commits, 16, &["futex", "wake"]);
    // The database's log, each page in two parts, and its locks. No file is created for a small
    // blob.
    server.at_most_for(commits, 1, &["fsync", "fdatasync"]);
    server.at_most_for(commits, 24, &["pwrite64"]);
    server.at_most_for(commits, 9, &["pread64"]);
    server.at_most_for(commits, 12, &["fcntl"]);
    assert_eq!(Calls::sum(&server.all, &["openat", "rename", "renameat", "unlinkat"]), 0, "{server:?}");
}

#[test]
fn small_commit_over_mio_is_within_budget() {
    small_commit_is_within_budget("mio");
}

#[test]
fn small_commit_over_tokio_is_within_budget() {
    small_commit_is_within_budget("tokio");
}
