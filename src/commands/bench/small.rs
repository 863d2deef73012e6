//! Small blobs and objects: committed and loaded, by one caller and by many on one connection.
//!
//! A commit waits for the disk once. Its limit is a bare append and sync of the same bytes, plus a
//! bare round trip. For 16 callers it is an append of 16 times the bytes, because one sync can
//! serve all of them. The limit of a load is a bare round trip with an answer of the same size, for
//! 16 callers with 16 requests at once. The limit is measured right before and after the figure,
//! because such short times vary on a shared machine.

use std::collections::BTreeMap;
use std::io;

use blobferry_protocol::{BlobId, Oid};

use super::messages::{CallTimes, Calls, Message, Stored};
use super::processes::Client;
use super::report::{RowId, Target, Unit};
use super::{Bench, SMALL, Setup, baselines, size_name};
use crate::cli::Section;
use crate::transport::Transport;

/// The bytes of a small answer, or of an object's record.
const TINY: usize = 256;

/// The numbers of callers on one connection.
const CALLERS: [usize; 3] = [1, 16, 64];

/// The figures for one number of callers.
struct Rows {
    callers: usize,
    small: Option<SmallRows>,
    objects: Option<ObjectRows>,
}

struct SmallRows {
    commit: RowId,
    /// The server's counters of these commits, if it counts syncs.
    a_sync: RowId,
    a_batch: RowId,
    to_memory: RowId,
    to_file: RowId,
}

struct ObjectRows {
    commit: RowId,
    load: RowId,
}

/// Measures the section.
pub(super) fn run(bench: &mut Bench) -> io::Result<()> {
    let bare = bare_rows(bench);
    let rows: Vec<Rows> = CALLERS.iter().map(|callers| rows(bench, *callers)).collect();
    for round in 0..bench.plan.rounds {
        bench.environment.doing("bare syncs and round trips")?;
        let (sync, trip) = (Bare::Sync(SMALL).measure(bench, 1)?, Bare::Trip(TINY).measure(bench, 1)?);
        bench.report.limit(bare.sync, sync * 1e3);
        bench.report.limit(bare.trip, trip * 1e3);
        for transport in bench.transports(round) {
            one(bench, &rows, transport)?;
        }
    }
    Ok(())
}

/// The bare system calls of a figure's limit.
#[derive(Clone, Copy)]
enum Bare {
    /// A round trip with an answer of this number of bytes.
    Trip(usize),
    /// An append of this number of bytes, and a sync.
    Sync(usize),
    /// Both, as a commit of this number of bytes needs them.
    Commit(usize),
}

impl Bare {
    /// Measures for `callers` callers, and returns the time per caller in seconds.
    fn measure(self, bench: &Bench, callers: usize) -> io::Result<f64> {
        match self {
            Bare::Trip(bytes) => baselines::round_trip(bytes, callers, (bench.plan.trips / callers).max(1)),
            Bare::Sync(bytes) => {
                let all =
                    baselines::append_and_sync(bench.environment.path(), bytes * callers, bench.plan.syncs)?;
                Ok(all / callers as f64)
            }
            Bare::Commit(bytes) => {
                Ok(Bare::Trip(TINY).measure(bench, callers)? + Bare::Sync(bytes).measure(bench, callers)?)
            }
        }
    }
}

struct BareRows {
    sync: RowId,
    trip: RowId,
}

fn bare_rows(bench: &mut Bench) -> BareRows {
    let name = size_name(SMALL as u64);
    let sync = format!("bare append of {name}, and its sync");
    BareRows {
        sync: bench.row("bare-sync", &sync, Unit::Milliseconds, None),
        trip: bench.row("bare-round-trip", "bare round trip", Unit::Milliseconds, None),
    }
}

fn rows(bench: &mut Bench, callers: usize) -> Rows {
    let by = if callers == 1 { "1 caller".to_owned() } else { format!("{callers} callers") };
    let name = size_name(SMALL as u64);
    let small = bench.plan.has(Section::Small).then(|| {
        let (commit, load, a_sync, a_batch) = match callers {
            1 => (Some(Target::Ratio(0.6)), Some(Target::Ratio(0.6)), None, None),
            16 => {
                (Some(Target::AtLeast(4000.0)), None, Some(Target::AtLeast(8.0)), Some(Target::AtMost(1.2)))
            }
            _ => (None, Some(Target::AtLeast(50_000.0)), None, None),
        };
        let mut row = |figure: &str, what: String, unit, target| {
            bench.row(&format!("{figure}-{callers}"), &format!("{what}, {by}"), unit, target)
        };
        SmallRows {
            commit: row("commit-blobs", format!("commit a blob of {name}"), Unit::PerSecond, commit),
            a_sync: row("commits-a-sync", "  commits a sync".into(), Unit::Each, a_sync),
            a_batch: row("syncs-a-batch", "  syncs a batch".into(), Unit::Each, a_batch),
            to_memory: row("load-bytes", format!("load a blob of {name} to memory"), Unit::PerSecond, load),
            to_file: row("load-blobs", format!("load a blob of {name} to a file"), Unit::PerSecond, None),
        }
    });
    let objects = bench.plan.has(Section::Objects).then(|| {
        let mut row = |figure: &str, what: &str| {
            bench.row(&format!("{figure}-{callers}"), &format!("{what}, {by}"), Unit::PerSecond, None)
        };
        ObjectRows {
            commit: row("commit-objects", "commit an object"),
            load: row("load-objects", "load an object"),
        }
    });
    Rows { callers, small, objects }
}

/// Measures one transport, on a new server. Every figure has a new client with an empty cache.
fn one(bench: &mut Bench, rows: &[Rows], transport: Transport) -> io::Result<()> {
    let dir = bench.new_dir()?;
    let server = bench.serve(transport, dir.path())?;
    let setup = Setup { transport, server: &server, dir: dir.path() };
    let filled = |blob, bench: &Bench| -> io::Result<Stored> {
        bench.environment.doing(format!("storing what will be loaded, {}", transport.name()))?;
        setup.client()?.ask(&Message::Fill { count: bench.plan.blobs, blob })
    };
    let blobs = match bench.plan.has(Section::Small) {
        true => filled(Some(SMALL), bench)?.blobs(),
        false => Vec::new(),
    };
    let oids = match bench.plan.has(Section::Objects) {
        true => filled(None, bench)?.oids,
        false => Vec::new(),
    };
    bench.environment.let_disk_recover((SMALL * blobs.len()) as u64)?;
    for rows in rows {
        small(bench, &setup, rows, &blobs)?;
        objects(bench, &setup, rows, &oids)?;
    }
    server.stop()
}

fn small(bench: &mut Bench, setup: &Setup<'_>, rows: &Rows, blobs: &[BlobId]) -> io::Result<()> {
    let Some(small) = &rows.small else { return Ok(()) };
    let transport = Some(setup.transport);
    let mut client = setup.client()?;
    let before: Counters = client.ask(&Message::Status)?;
    let what = Calls::CommitBlobs { size: SMALL };
    beside(bench, setup, small.commit, Bare::Commit(SMALL), rows.callers, |bench| {
        call(bench, setup, &mut client, "commits", what, rows.callers)
    })?;
    let after: Counters = client.ask(&Message::Status)?;
    let more = |name: &str| Some((after.get(name)? - before.get(name)?) as f64);
    if let (Some(commits), Some(batches), Some(syncs)) = (more("commits"), more("batches"), more("syncs")) {
        bench.report.value(small.a_sync, transport, commits / syncs);
        bench.report.value(small.a_batch, transport, syncs / batches);
    }
    drop(client);

    let ways: [(RowId, &str, super::Loads); 2] = [
        (small.to_memory, "loads to memory", |blobs| Calls::LoadBytes { blobs: blobs.to_vec() }),
        (small.to_file, "loads to files", |blobs| Calls::LoadBlobs { blobs: blobs.to_vec() }),
    ];
    for (row, doing, what) in ways {
        bench.environment.doing("making the directories of a cache")?;
        let (mut client, what) = setup.client_that_has_loaded(what, blobs)?;
        let loaded = beside(bench, setup, row, Bare::Trip(SMALL), rows.callers, |bench| {
            call(bench, setup, &mut client, doing, what, rows.callers)
        })?;
        bench.environment.let_disk_recover(loaded.done * SMALL as u64)?;
    }
    Ok(())
}

fn objects(bench: &mut Bench, setup: &Setup<'_>, rows: &Rows, oids: &[Oid]) -> io::Result<()> {
    let Some(objects) = &rows.objects else { return Ok(()) };
    let mut client = setup.client()?;
    let ways = [
        (objects.commit, Bare::Commit(TINY), "commits of objects", Calls::CommitObjects),
        (objects.load, Bare::Trip(TINY), "loads of objects", Calls::LoadObjects { oids: oids.to_vec() }),
    ];
    for (row, bare, doing, what) in ways {
        beside(bench, setup, row, bare, rows.callers, |bench| {
            call(bench, setup, &mut client, doing, what, rows.callers)
        })?;
    }
    Ok(())
}

/// Makes calls between two measurements of their limit.
fn beside(
    bench: &mut Bench,
    setup: &Setup<'_>,
    row: RowId,
    bare: Bare,
    callers: usize,
    calls: impl FnOnce(&Bench) -> io::Result<CallTimes>,
) -> io::Result<CallTimes> {
    let before = bare.measure(bench, callers)?;
    let ran = calls(bench)?;
    let seconds = f64::midpoint(before, bare.measure(bench, callers)?);
    bench.report.value_beside(row, setup.transport, ran.rate(), 1.0 / seconds);
    Ok(ran)
}

fn call(
    bench: &Bench,
    setup: &Setup<'_>,
    client: &mut Client,
    doing: &str,
    what: Calls,
    callers: usize,
) -> io::Result<CallTimes> {
    bench.environment.doing(format!("{doing}, {callers} at once, {}", setup.transport.name()))?;
    client.ask(&Message::Call { what, callers, time: bench.plan.time })
}

/// A server's counters by name.
type Counters = BTreeMap<String, u64>;
