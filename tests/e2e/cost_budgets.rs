//! What a large blob costs in system calls, on both sides and over both transports, what the commit of a small one does, and
//! what its load costs the client: counted with `strace`, not timed. The ceilings are for each chunk of 256 KiB, or each small
//! blob, and about twice what was counted: how much one call moves is up to the kernel.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::strace::{self, Strace};
use crate::support::{Home, Ran, Serve, bytes, copy_environment};

const CHUNKS: usize = 256;
const SIZE: usize = CHUNKS * (256 << 10);

/// Calls by their names, and those that moved more than a page of the database, by the same.
#[derive(Debug, Default)]
struct Calls {
    all: BTreeMap<String, usize>,
    large: BTreeMap<String, usize>,
}

impl Calls {
    /// In what `strace -f` has written.
    fn of_log(log: &str) -> Calls {
        let mut calls = Calls::default();
        for line in log.lines() {
            let line = line.split_once(' ').unwrap().1.trim_start();
            // A call that was interrupted by another thread's has two lines: the result is in the second.
            let name = match line.strip_prefix("<... ") {
                Some(resumed) => resumed.split_whitespace().next().unwrap(),
                None if line.contains("<unfinished ...>") => continue,
                None => line.split('(').next().unwrap(),
            };
            let Some((call, result)) = line.rsplit_once(" = ") else { continue };
            let moved = result.split_whitespace().next().unwrap().parse::<i64>().unwrap_or(0);
            let name = match name {
                // Eight bytes are written to wake who waits for events.
                "write" if moved == 8 => "wake",
                // Nobody waited, and nothing had happened.
                "epoll_wait" if moved == 0 && call.trim_end().ends_with(", 0)") => "look",
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

    /// So many of these calls together for a chunk, at most.
    #[track_caller]
    fn at_most(&self, ceiling: usize, names: &[&str]) {
        self.at_most_for(CHUNKS, ceiling, names);
    }

    /// So many of these calls together for each of some things, at most.
    #[track_caller]
    fn at_most_for(&self, things: usize, ceiling: usize, names: &[&str]) {
        let count = Calls::sum(&self.all, names);
        assert!(count <= ceiling * things, "{count} of {names:?} for {things}: {self:?}");
    }

    /// How often payload went through one of these calls.
    fn moves(&self, names: &[&str]) -> usize {
        Calls::sum(&self.large, names)
    }
}

/// What `strace` is told. Locks and memory are not for each chunk; what waits for sockets and other threads is.
const TRACE: &str = "trace=read,write,pread64,pwrite64,readv,writev,recvfrom,sendto,sendmsg,recvmsg,sendfile,splice,\
    epoll_wait,epoll_pwait,epoll_ctl,futex,accept4";

const READS: &[&str] = &["read", "pread64", "readv"];

/// The calls of both sides of a large blob.
struct Counted {
    put: Calls,
    server: Calls,
    get: Calls,
}

/// A client that puts a large blob, and one that gets it, and the server meanwhile. `None` where calls can not be counted.
fn put_and_get(transport: &str) -> Option<Counted> {
    let serve = |home: &Path| Serve::start_with(&home.join("server"), &["--transport", transport]);
    let home = Home::with(serve);
    let file = home.file("large", bytes("large", SIZE));
    let told = || {
        let mut strace = Command::new("strace");
        strace.args(["-e", TRACE]);
        strace
    };
    let put = home.command(&["put", "--transport", transport, &file]);
    let (output, put) = strace::run(&mut told(), &put, &home.path("put.strace"))?;
    Ran::from(output).ok();

    let looks = Strace::attach(&mut told(), &home.server, home.path("server.strace"))?;
    let get = home.command(&["get", "--transport", transport, "large"]);
    let (output, client) = strace::run(&mut told(), &get, &home.path("client.strace"))?;
    let got = Ran::from(output).ok();
    assert_eq!(std::fs::metadata(got.trim()).unwrap().len(), SIZE as u64);
    let [put, server, get] = [put, looks.end(), client].map(|log| Calls::of_log(&log));
    Some(Counted { put, server, get })
}

fn a_large_blob_is_within_its_ceilings(transport: &str) {
    let Some(Counted { put, server, get }) = put_and_get(transport) else { return };
    // Who stores reads each byte once, to hash it, and never copies it to the socket.
    assert!(put.moves(&["sendfile", "splice"]) >= CHUNKS / 8, "{put:?}");
    assert_eq!(put.moves(&["sendto", "sendmsg", "writev"]), 0, "{put:?}");
    put.at_most(10, READS);
    put.at_most(6, &["sendfile", "splice", "sendto", "sendmsg"]);
    put.at_most(6, &["epoll_wait", "epoll_pwait", "epoll_ctl", "futex", "recvfrom"]);
    // What was hashed on its way in goes from its file to the socket, and never into the server's memory.
    assert!(server.moves(&["sendfile", "splice"]) >= CHUNKS / 8, "{server:?}");
    assert_eq!(server.moves(READS), 0, "{server:?}");
    server.at_most(6, &["sendfile", "splice", "sendto", "sendmsg", "write", "wake"]);
    server.at_most(6, &["epoll_wait", "epoll_pwait", "epoll_ctl", "futex", "accept4", "recvfrom"]);
    // The client moves each byte twice: out of the socket, and into the file.
    get.at_most(10, &["recvfrom", "read"]);
    get.at_most(10, &["write", "pwrite64"]);
    get.at_most(10, &["epoll_wait", "epoll_pwait", "epoll_ctl", "futex"]);
    assert_eq!(get.moves(&["pread64", "readv"]), 0, "{get:?}");
}

#[test]
fn a_large_blob_over_mio_is_sent_without_a_copy_and_within_its_ceilings() {
    a_large_blob_is_within_its_ceilings("mio");
}

#[test]
fn a_large_blob_over_tokio_is_sent_without_a_copy_and_within_its_ceilings() {
    a_large_blob_is_within_its_ceilings("tokio");
}

/// Small blobs that are loaded, behind those whose directories the cache makes first.
const SMALL: usize = 300;
const BUCKETS: usize = 997;

/// An order for a client of a benchmark, which does it and ends.
fn worker(home: &Home, transport: &str, order: &Value) -> (Command, File) {
    let orders = File::open(home.file("orders", format!("{order}\n"))).unwrap();
    (home.command(&["--transport", transport, "bench-worker"]), orders)
}

fn done(home: &Home, transport: &str, order: &Value) -> Value {
    let (mut command, orders) = worker(home, transport, order);
    serde_json::from_str(&Ran::from(command.stdin(orders).output().unwrap()).ok()).unwrap()
}

fn loads(blobs: &[Value]) -> Value {
    let what = json!({"LoadBytes": {"blobs": blobs}});
    json!({"Call": {"what": what, "callers": 1, "time": {"secs": 600, "nanos": 0}}})
}

/// What comes of an order, and the calls of who does it. `None` where they can not be counted.
fn traced(home: &Home, transport: &str, order: &Value) -> Option<(Value, Calls)> {
    let (command, _) = worker(home, transport, order);
    // What strace runs reads its orders from a file.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" < \"$ORDERS\"", "sh"]).arg(command.get_program()).args(command.get_args());
    copy_environment(&command, &mut shell);
    shell.env("ORDERS", home.path("orders"));
    let (output, log) = strace::run(&mut Command::new("strace"), &shell, &home.path("strace"))?;
    Some((serde_json::from_str(&Ran::from(output).ok()).unwrap(), Calls::of_log(&log)))
}

fn a_small_load_is_within_its_ceilings(transport: &str) {
    let home = Home::with(|home| Serve::start_with(&home.join("server"), &["--transport", transport]));
    let filled = done(&home, transport, &json!({"Fill": {"count": BUCKETS + SMALL, "blob": 10 << 10}}));
    let oids = filled["oids"].as_array().unwrap().iter();
    let blobs: Vec<Value> = oids.map(|oid| json!({"oid": oid, "tid": filled["tid"]})).collect();
    let (first, rest) = blobs.split_at(BUCKETS);
    assert_eq!(done(&home, transport, &loads(first))["done"], BUCKETS);

    let Some((loaded, calls)) = traced(&home, transport, &loads(rest)) else { return };
    assert_eq!(loaded["done"], SMALL);
    // The request and its answer. Who waits looks 50 times before it sleeps, and 50 times more if the answer comes in two pieces:
    // over mio for events, over tokio for bytes, while threads of the runtime may wake each other.
    let looks = 100;
    calls.at_most_for(SMALL, 2, &["sendto"]);
    calls.at_most_for(SMALL, 3, &["recvfrom"]);
    calls.at_most_for(SMALL, if transport == "mio" { 1 } else { looks }, &["read"]);
    calls.at_most_for(SMALL, 4 + looks, &["epoll_wait", "epoll_pwait"]);
    calls.at_most_for(SMALL, 4, &["wake"]);
    // The claim, and the note in the packs, by which the index grows: no file is made, and none is synced. How many notes
    // are written together is up to the kernel; one by one is the most.
    calls.at_most_for(SMALL, 2, &["write"]);
    calls.at_most_for(SMALL, 4, &["openat", "open"]);
    calls.at_most_for(SMALL, 8, &["flock"]);
    calls.at_most_for(SMALL, 4, &["pread64"]);
    calls.at_most_for(SMALL, 2, &["pwrite64"]);
    assert_eq!(Calls::sum(&calls.all, &["fsync", "fdatasync", "link", "linkat"]), 0, "{calls:?}");
}

#[test]
fn a_small_load_over_mio_is_within_its_ceilings() {
    a_small_load_is_within_its_ceilings("mio");
}

#[test]
fn a_small_load_over_tokio_is_within_its_ceilings() {
    a_small_load_is_within_its_ceilings("tokio");
}

fn a_small_commit_is_within_its_ceilings(transport: &str) {
    let home = Home::with(|home| Serve::start_with(&home.join("server"), &["--transport", transport]));
    let Some(looks) = Strace::attach(&mut Command::new("strace"), &home.server, home.path("server.strace"))
    else {
        return;
    };
    let what = json!({"CommitBlobs": {"size": 10 << 10}});
    let order = json!({"Call": {"what": what, "callers": 1, "time": {"secs": 1, "nanos": 0}}});
    let Some((ran, client)) = traced(&home, transport, &order) else { return };
    let server = Calls::of_log(&looks.end());
    let commits = usize::try_from(ran["done"].as_u64().unwrap()).unwrap();
    assert!(commits > 0, "{ran}");
    // With something for how it begins and ends.
    let commits = commits + 10;
    // Nobody looks for the answer to a commit: it waits for a disk.
    client.at_most_for(commits, 4, &["sendto"]);
    client.at_most_for(commits, 6, &["recvfrom", "read"]);
    client.at_most_for(commits, 6, &["epoll_wait", "epoll_pwait"]);
    client.at_most_for(commits, 1, &["look"]);
    client.at_most_for(commits, 8, &["futex", "wake"]);
    assert_eq!(Calls::sum(&client.all, &["fdatasync", "pwrite64"]), 0, "{client:?}");
    server.at_most_for(commits, 4, &["recvfrom", "read"]);
    server.at_most_for(commits, 6, &["sendto"]);
    server.at_most_for(commits, 8, &["epoll_wait", "epoll_pwait"]);
    server.at_most_for(commits, 16, &["futex", "wake"]);
    // The database's log, each page in two parts, and its locks. No file is made for a small blob.
    server.at_most_for(commits, 1, &["fsync", "fdatasync"]);
    server.at_most_for(commits, 24, &["pwrite64"]);
    server.at_most_for(commits, 9, &["pread64"]);
    server.at_most_for(commits, 12, &["fcntl"]);
    assert_eq!(Calls::sum(&server.all, &["openat", "rename", "renameat", "unlinkat"]), 0, "{server:?}");
}

#[test]
fn a_small_commit_over_mio_is_within_its_ceilings() {
    a_small_commit_is_within_its_ceilings("mio");
}

#[test]
fn a_small_commit_over_tokio_is_within_its_ceilings() {
    a_small_commit_is_within_its_ceilings("tokio");
}
