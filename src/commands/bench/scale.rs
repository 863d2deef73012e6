//! A store with many small blobs and names: the time to open it, and its commits and loads,
//! compared with an empty store.
//!
//! Ordinary transactions fill the store, each with one directory of names. Both stores have a
//! server at the same time. They are measured alternately, [`TURNS`] times a round, and the figure
//! is the median ratio. Blobs are loaded in random order, so that read-ahead does not help.

use std::io;
use std::path::Path;
use std::time::Instant;

use blobferry_protocol::BlobId;

use super::messages::{CallTimes, Calls, Message, Stored};
use super::processes::Client;
use super::report::{RowId, Spread, Target, Unit};
use super::{Bench, SMALL, Setup};
use crate::transport::Transport;

/// The number of blobs and names in a transaction.
const BATCH: usize = 20_000;

/// The bytes of a blob.
const SIZE: usize = 1 << 10;

/// The number of callers that commit and load.
const CALLERS: usize = 16;

/// The number of comparisons in a round, each with other blobs.
const TURNS: usize = 4;

struct Rows {
    fill: RowId,
    open: RowId,
    commit: RowId,
    load: RowId,
}

/// Measures the section.
pub(super) fn run(bench: &mut Bench) -> io::Result<()> {
    if bench.server.is_some() {
        bench.leave_out("scale", "the server's directory is not of our own");
        return Ok(());
    }
    let rows = rows(bench);
    let full = bench.new_dir()?;
    let blobs = fill(bench, full.path(), rows.fill)?;
    for round in 0..bench.plan.rounds {
        for transport in bench.transports(round) {
            one(bench, &rows, transport, full.path(), &blobs)?;
        }
    }
    Ok(())
}

fn rows(bench: &mut Bench) -> Rows {
    let store = format!("a store of {0} blobs and {0} names", bench.plan.count);
    let mut row = |figure: &str, what: String, unit, target| bench.row(figure, &what, unit, target);
    let like_empty = Some(Target::AtLeast(0.8));
    Rows {
        fill: row("scale-fill", format!("fill {store}"), Unit::Seconds, None),
        open: row("scale-open", format!("open {store}"), Unit::Seconds, Some(Target::AtMost(1.0))),
        commit: row("scale-commit", "  commits, beside an empty store".into(), Unit::Each, like_empty),
        load: row("scale-load", "  loads, beside an empty store".into(), Unit::Each, like_empty),
    }
}

/// Fills a store, and returns the blobs to load, evenly spread over it.
fn fill(bench: &mut Bench, dir: &Path, row: RowId) -> io::Result<Vec<BlobId>> {
    let count = bench.plan.count;
    let Some(transport) = bench.plan.transports.last().copied() else { return Ok(Vec::new()) };
    let server = bench.serve(transport, dir)?;
    let mut client = Setup { transport, server: &server, dir }.client()?;
    let every = (count / (bench.plan.blobs * TURNS)).max(1);
    let (mut blobs, mut done) = (Vec::new(), 0);
    let begun = Instant::now();
    while done < count {
        bench.environment.doing(format!("filling a store: {done} of {count} blobs and names"))?;
        let batch = BATCH.min(count - done);
        let message = Message::Publish { directory: format!("directory-{done}"), count: batch, blob: SIZE };
        let filled: Stored = client.ask(&message)?;
        blobs.extend(filled.blobs().into_iter().step_by(every));
        done += batch;
    }
    bench.report.value(row, None, begun.elapsed().as_secs_f64());
    drop(client);
    server.stop()?;
    bench.environment.let_disk_recover((count * SIZE) as u64)?;
    Ok(shuffled(blobs))
}

/// Shuffles blobs, in the same way for every run.
fn shuffled(mut blobs: Vec<BlobId>) -> Vec<BlobId> {
    blobs.sort_by_cached_key(|blob| *blake3::hash(&blob.oid.0.to_le_bytes()).as_bytes());
    blobs
}

fn one(
    bench: &mut Bench,
    rows: &Rows,
    transport: Transport,
    full: &Path,
    blobs: &[BlobId],
) -> io::Result<()> {
    bench.environment.doing(format!("opening a full store, {}", transport.name()))?;
    let begun = Instant::now();
    let server = bench.serve(transport, full)?;
    bench.report.value(rows.open, Some(transport), begun.elapsed().as_secs_f64());
    let dir = bench.new_dir()?;
    let of_empty = bench.serve(transport, dir.path())?;
    let message = Message::Fill { count: blobs.len(), blob: Some(SIZE) };
    let [full, empty] =
        [(&server, full), (&of_empty, dir.path())].map(|(server, dir)| Setup { transport, server, dir });
    let filled: Stored = empty.client()?.ask(&message)?;
    let filled = shuffled(filled.blobs());

    let (mut commits, mut loads) = (Vec::new(), Vec::new());
    let size = blobs.len().div_ceil(TURNS).max(1);
    for (turn, (of_full, of_empty)) in blobs.chunks(size).zip(filled.chunks(size)).enumerate() {
        let full = || rates(bench, &full, of_full);
        let empty = || rates(bench, &empty, of_empty);
        // The first store alternates.
        let (full, empty) = match turn % 2 {
            0 => (full()?, empty()?),
            _ => {
                let empty = empty()?;
                (full()?, empty)
            }
        };
        commits.push(full.commit / empty.commit);
        loads.push(full.load / empty.load);
    }
    for (row, ratios) in [(rows.commit, commits), (rows.load, loads)] {
        let median = Spread::of(&ratios).map_or(f64::NAN, |spread| spread.median);
        bench.report.value(row, Some(transport), median);
    }
    server.stop()?;
    of_empty.stop()
}

/// Commits and loads per second.
struct Rates {
    commit: f64,
    load: f64,
}

fn rates(bench: &Bench, setup: &Setup<'_>, blobs: &[BlobId]) -> io::Result<Rates> {
    let measure = |doing: &str, (mut client, what): (Client, Calls)| -> io::Result<f64> {
        bench.environment.let_disk_recover(0)?;
        bench.environment.doing(format!("{doing}, {}", setup.transport.name()))?;
        let message = Message::Call { what, callers: CALLERS, time: bench.plan.time };
        Ok(client.ask::<CallTimes>(&message)?.rate())
    };
    let loads = |blobs: &[BlobId]| Calls::LoadBytes { blobs: blobs.to_vec() };
    Ok(Rates {
        commit: measure("commits", (setup.client()?, Calls::CommitBlobs { size: SMALL }))?,
        load: measure("loads", setup.client_that_has_loaded(loads, blobs)?)?,
    })
}
