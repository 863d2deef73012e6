//! Large blobs: stored and loaded by one client, right after a bare loop from a socket to a file.
//! For the largest blob, also memory and processor time.
//!
//! A stored file is in the page cache before, and durable after. A loaded blob is in the server's
//! page cache before, and verified and in a file of the client's cache after. A server hashes what
//! it sends, unless it did so within the last hour; therefore the first load after its start is a
//! separate figure. Each direction has a new server, and each load a new client, so that their peak
//! memory is that of one measurement.
//!
//! The page cache holds no more than necessary, because a virtual machine gets new memory slowly.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use blobferry_protocol::BlobId;

use super::environment::{forget, in_memory, warm};
use super::messages::{CallTimes, Calls, Message};
use super::processes::{Client, Server, processor_seconds};
use super::report::{RowId, Spread, Target, Unit};
use super::{Bench, Setup, baselines, rate, size_name};
use crate::cli::Section;
use crate::memory::peak_of;
use crate::transport::Transport;

/// A time limit that no load reaches.
const LONG: Duration = Duration::from_secs(1 << 32);

/// One size of blobs.
struct Subject {
    size: u64,
    /// The number of blobs per round. The figure is their median.
    count: usize,
    file: PathBuf,
    rows: Option<Rows>,
    in_memory: Option<RowId>,
    /// The rate of hashing, which each side does for all bytes.
    hash: Option<RowId>,
    costs: Option<Costs>,
}

#[derive(Clone, Copy)]
struct Rows {
    load: RowId,
    /// The first load after a server's start; `None` for a server that runs already.
    first: Option<RowId>,
    /// Loads, compared with a bare loop that hashes what it receives.
    hashed: RowId,
    store: RowId,
}

/// Memory and processor time of both sides, for the largest blob.
#[derive(Clone, Copy)]
struct Costs {
    load: Cost,
    store: Cost,
}

#[derive(Clone, Copy)]
struct Cost {
    server: RowId,
    client: RowId,
    processors: RowId,
}

/// Measures the section.
pub(super) fn run(bench: &mut Bench) -> io::Result<()> {
    let mut sizes = bench.plan.sizes.clone();
    if !bench.plan.has(Section::Large) {
        sizes.retain(|(size, _)| *size == bench.plan.largest);
    }
    let subjects = sizes.into_iter().map(|(size, count)| subject(bench, size, count));
    let subjects = subjects.collect::<io::Result<Vec<Subject>>>()?;
    for round in 0..bench.plan.rounds {
        for subject in &subjects {
            hash(bench, subject)?;
            for transport in bench.transports(round) {
                both_ways(bench, subject, transport)?;
            }
            without_sync(bench, subject, round)?;
        }
    }
    subjects.iter().try_for_each(|subject| std::fs::remove_file(&subject.file))
}

fn subject(bench: &mut Bench, size: u64, count: usize) -> io::Result<Subject> {
    let is_largest = size == bench.plan.largest;
    let name = size_name(size);
    let file = bench.environment.file(&format!("source-{size}"), size)?;
    let is_shown = is_largest && bench.plan.has(Section::Large);
    let what = format!("bare hash of {name}, one thread");
    let hash = is_shown.then(|| bench.row("bare-hash", &what, Unit::Rate, None));
    let rows = bench.plan.has(Section::Large).then(|| rows(bench, size, &name));
    let in_memory = (is_largest && rows.is_some()).then(|| row_in_memory(bench, size, &name)).flatten();
    let costs = (is_largest && bench.plan.has(Section::Memory)).then(|| costs(bench, &name)).flatten();
    Ok(Subject { size, count, file, rows, in_memory, hash, costs })
}

fn rows(bench: &mut Bench, size: u64, name: &str) -> Rows {
    let (load, store) = match size >> 20 {
        64 => (Some(Target::Ratio(0.75)), None),
        1024 => (Some(Target::Ratio(0.80)), Some(Target::Ratio(0.80))),
        _ => (None, None),
    };
    let figure = name.replace(' ', "-");
    let (what_load, what_store) = (format!("load {name}, verified"), format!("store {name}, durable"));
    let what_first = "  the first time after the server's start";
    let what_hashed = "  beside a bare loop that hashes what it receives";
    let load_row = bench.row(&format!("load-{figure}"), &what_load, Unit::Rate, load);
    let is_ours = bench.server.is_none();
    Rows {
        load: load_row,
        first: is_ours.then(|| bench.row(&format!("load-{figure}-first"), what_first, Unit::Rate, load)),
        hashed: bench.row(&format!("load-{figure}-beside-hash"), what_hashed, Unit::Rate, None),
        store: bench.row(&format!("store-{figure}"), &what_store, Unit::Rate, store),
    }
}

fn row_in_memory(bench: &mut Bench, size: u64, name: &str) -> Option<RowId> {
    let figure = format!("store-{}-in-memory", name.replace(' ', "-"));
    if bench.server.is_some() {
        bench.leave_out(&figure, "the server is not of our own");
        return None;
    }
    // A blob, the file of a bare loop, and the same again for other programs.
    if in_memory(size.saturating_mul(4)).is_none() {
        bench.leave_out(&figure, "there is no directory in memory with enough room");
        return None;
    }
    let target = (size == 1 << 30).then_some(Target::Ratio(0.75));
    let what = format!("store {name}, the server's directory in memory");
    Some(bench.row(&figure, &what, Unit::Rate, target))
}

fn costs(bench: &mut Bench, name: &str) -> Option<Costs> {
    if bench.server.is_some() {
        bench.leave_out("memory", "the server's process is not of our own");
        return None;
    }
    let mut cost = |way: &str| {
        let peak =
            |side| (format!("memory-{way}-{side}"), format!("peak memory of the {side}, {way} {name}"));
        let limit = Some(Target::AtMost(16.0));
        let (server, client) = (peak("server"), peak("client"));
        Cost {
            server: bench.row(&server.0, &server.1, Unit::MiB, limit),
            client: bench.row(&client.0, &client.1, Unit::MiB, limit),
            processors: bench.row(
                &format!("processors-{way}"),
                &format!("processor time of both sides, {way} {name}"),
                Unit::CpuSeconds,
                None,
            ),
        }
    };
    Some(Costs { load: cost("load"), store: cost("store") })
}

/// The baseline of a transfer, measured right before it.
struct Bare {
    rate: f64,
    /// Processor time per GiB, in seconds.
    processors: Option<f64>,
}

fn bare_loop(bench: &Bench, subject: &Subject, sync: bool) -> io::Result<Bare> {
    let name = size_name(subject.size);
    bench.environment.doing(format!("{name}: a bare loop{}", if sync { " and a sync" } else { "" }))?;
    warm(&subject.file)?;
    let to = bench.environment.path().join("bare");
    let before = processor_seconds(std::process::id());
    let seconds = median(subject, || baselines::copy(&subject.file, &to, subject.size, sync))?;
    let after = processor_seconds(std::process::id());
    bench.environment.let_disk_recover(written(subject))?;
    Ok(Bare { rate: rate(subject.size, seconds), processors: per_gib(subject, before, after) })
}

/// Measures the rate of hashing.
fn hash(bench: &mut Bench, subject: &Subject) -> io::Result<()> {
    let Some(row) = subject.hash else { return Ok(()) };
    bench.environment.doing(format!("{}: a bare hash", size_name(subject.size)))?;
    bench.report.limit(row, rate(subject.size, baselines::hash(subject.size)));
    Ok(())
}

/// Returns the rate of a bare loop that hashes what it receives.
fn hashing_loop(bench: &Bench, subject: &Subject) -> io::Result<f64> {
    bench.environment.doing(format!("{}: a bare loop that hashes", size_name(subject.size)))?;
    warm(&subject.file)?;
    let to = bench.environment.path().join("bare");
    let seconds = median(subject, || baselines::copy_and_hash(&subject.file, &to, subject.size))?;
    bench.environment.let_disk_recover(written(subject))?;
    Ok(rate(subject.size, seconds))
}

/// Measures one transport: stores blobs, then loads them.
fn both_ways(bench: &mut Bench, subject: &Subject, transport: Transport) -> io::Result<()> {
    let (name, by) = (size_name(subject.size), transport.name());
    let bare = bare_loop(bench, subject, true)?;
    let dir = bench.new_dir()?;
    let stored = {
        let server = bench.serve(transport, dir.path())?;
        let setup = Setup { transport, server: &server, dir: dir.path() };
        bench.environment.doing(format!("{name}: storing, {by}"))?;
        warm(&subject.file)?;
        let store = Message::StoreFile { path: subject.file.clone(), count: subject.count };
        let (row, cost) = (subject.rows.map(|rows| rows.store), subject.costs.map(|costs| costs.store));
        let stored = measure_transfer(bench, subject, &setup, &store, &bare, row, cost)?;
        server.stop()?;
        forget(&subject.file)?;
        stored
    };
    bench.environment.let_disk_recover(written(subject))?;

    let bare = bare_loop(bench, subject, false)?;
    let hashing = match subject.rows {
        Some(rows) => Some((rows.hashed, hashing_loop(bench, subject)?)),
        None => None,
    };
    forget(&subject.file)?;
    bench.warm_server(dir.path())?;
    let server = bench.serve(transport, dir.path())?;
    let setup = Setup { transport, server: &server, dir: dir.path() };
    let blobs = stored.committed.iter().map(|(oid, tid)| BlobId { oid: *oid, tid: *tid }).collect();
    let load = Message::Call { what: Calls::LoadBlobs { blobs }, callers: 1, time: LONG };
    if let Some(first) = subject.rows.and_then(|rows| rows.first) {
        bench.environment.doing(format!("{name}: loading for the first time, {by}"))?;
        measure_transfer(bench, subject, &setup, &load, &bare, Some(first), None)?;
        bench.environment.let_disk_recover(written(subject))?;
    }
    bench.environment.doing(format!("{name}: loading, {by}"))?;
    let (row, cost) = (subject.rows.map(|rows| rows.load), subject.costs.map(|costs| costs.load));
    let loaded = measure_transfer(bench, subject, &setup, &load, &bare, row, cost)?;
    if let Some((row, hashing)) = hashing {
        bench.report.value_beside(row, transport, rate(subject.size, loaded.p50), hashing);
    }
    server.stop()?;
    drop(dir);
    bench.environment.let_disk_recover(2 * written(subject))
}

fn measure_transfer(
    bench: &mut Bench,
    subject: &Subject,
    setup: &Setup<'_>,
    message: &Message,
    bare: &Bare,
    row: Option<RowId>,
    cost: Option<Cost>,
) -> io::Result<CallTimes> {
    let Setup { transport, server, .. } = *setup;
    let mut client = setup.client()?;
    let before = both_processors(server, &client);
    let ran: CallTimes = client.ask(message)?;
    let after = both_processors(server, &client);
    let report = &mut bench.report;
    if let Some(row) = row {
        report.value_beside(row, transport, rate(subject.size, ran.p50), bare.rate);
    }
    if let Some(cost) = cost {
        let peaks = [(cost.server, server.process()), (cost.client, Some(client.process()))];
        for (row, process) in peaks {
            if let Some(peak) = process.and_then(peak_of) {
                report.value(row, Some(transport), peak as f64 / f64::from(1 << 20));
            }
        }
        if let (Some(time), Some(limit)) = (per_gib(subject, before, after), bare.processors) {
            report.value_beside(cost.processors, transport, time, limit);
        }
    }
    Ok(ran)
}

/// Stores into memory, where a sync costs nothing, and compares with a bare loop into memory.
fn without_sync(bench: &mut Bench, subject: &Subject, round: usize) -> io::Result<()> {
    let Some(row) = subject.in_memory else { return Ok(()) };
    let gone = || io::Error::other("there is not enough memory any more for a directory in it");
    let name = size_name(subject.size);
    for transport in bench.transports(round) {
        bench.environment.doing(format!("{name}: a bare loop into memory"))?;
        warm(&subject.file)?;
        let memory = in_memory(subject.size).ok_or_else(gone)?;
        let seconds = baselines::copy(&subject.file, &memory.path().join("bare"), subject.size, false)?;
        let bare = Bare { rate: rate(subject.size, seconds), processors: None };
        drop(memory);
        bench.environment.doing(format!("{name}: storing into memory, {}", transport.name()))?;
        let memory = in_memory(subject.size).ok_or_else(gone)?;
        let server = bench.serve(transport, memory.path())?;
        let setup = Setup { transport, server: &server, dir: memory.path() };
        let store = Message::StoreFile { path: subject.file.clone(), count: subject.count };
        measure_transfer(bench, subject, &setup, &store, &bare, Some(row), None)?;
        server.stop()?;
    }
    Ok(())
}

fn median(subject: &Subject, mut measure: impl FnMut() -> io::Result<f64>) -> io::Result<f64> {
    let times = (0..subject.count).map(|_| measure()).collect::<io::Result<Vec<f64>>>()?;
    Ok(Spread::of(&times).map_or(f64::NAN, |spread| spread.median))
}

fn written(subject: &Subject) -> u64 {
    subject.size * subject.count as u64
}

fn both_processors(server: &Server, client: &Client) -> Option<f64> {
    Some(processor_seconds(server.process()?)? + processor_seconds(client.process())?)
}

fn per_gib(subject: &Subject, before: Option<f64>, after: Option<f64>) -> Option<f64> {
    Some((after? - before?) / (written(subject) as f64 / f64::from(1 << 30)))
}
