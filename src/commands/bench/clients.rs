//! Several clients, each with its own cache, load different large blobs from one server at the same
//! time.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use blobferry_protocol::BlobId;

use super::messages::{CallTimes, Calls, Message};
use super::processes::Client;
use super::report::{RowId, Target, Unit};
use super::{Bench, Setup, baselines, rate, size_name};
use crate::transport::Transport;

/// The number of clients.
const CLIENTS: usize = 4;

/// Measures the section.
pub(super) fn run(bench: &mut Bench) -> io::Result<()> {
    let size = bench.plan.shared;
    let name = size_name(size);
    let target = (size == 256 << 20).then_some(Target::Ratio(0.85));
    let what = format!("load {CLIENTS} x {name} at once, by {CLIENTS} clients");
    let figure = format!("load-{CLIENTS}-clients-{}", name.replace(' ', "-"));
    let row = bench.row(&figure, &what, Unit::Rate, target);
    let what = format!("  beside {CLIENTS} bare loops that hash what they receive");
    let hashed = bench.row(&format!("{figure}-beside-hash"), &what, Unit::Rate, None);
    let rows = Rows { bare: row, hashed };
    let file = bench.environment.file("source", size)?;
    for round in 0..bench.plan.rounds {
        for transport in bench.transports(round) {
            one(bench, rows, transport, &file, size)?;
        }
    }
    std::fs::remove_file(file)
}

/// The rows: one per baseline.
#[derive(Clone, Copy)]
struct Rows {
    bare: RowId,
    hashed: RowId,
}

fn one(bench: &mut Bench, rows: Rows, transport: Transport, file: &Path, size: u64) -> io::Result<()> {
    let all = size * CLIENTS as u64;
    let store = &Message::StoreFile { path: file.to_owned(), count: CLIENTS };
    let dir = bench.new_dir()?;
    bench.environment.doing(format!("storing what {CLIENTS} clients will load, {}", transport.name()))?;
    let server = bench.serve(transport, dir.path())?;
    let setup = Setup { transport, server: &server, dir: dir.path() };
    let stored: CallTimes = setup.client()?.ask(store)?;
    bench.environment.let_disk_recover(all)?;

    let bare_loops = |copy: baselines::CopyLoop, what: &str| {
        bench.environment.doing(format!("{CLIENTS} bare loops at once{what}"))?;
        let seconds = baselines::copies(copy, &[file; CLIENTS], bench.environment.path(), size)?;
        bench.environment.let_disk_recover(all)?;
        Ok::<f64, io::Error>(rate(all, seconds))
    };
    let bare = bare_loops(|from, to, size| baselines::copy(from, to, size, false), "")?;
    let hashing = bare_loops(baselines::copy_and_hash, " that hash")?;
    bench.warm_server(dir.path())?;

    bench.environment.doing(format!("{CLIENTS} clients load, {}", transport.name()))?;
    let mut clients = (0..CLIENTS).map(|_| setup.client()).collect::<io::Result<Vec<Client>>>()?;
    for client in &mut clients {
        // A client that has answered is connected.
        client.ask::<serde_json::Value>(&Message::Status)?;
    }
    let begun = Instant::now();
    for (client, (oid, tid)) in clients.iter_mut().zip(&stored.committed) {
        let what = Calls::LoadBlobs { blobs: vec![BlobId { oid: *oid, tid: *tid }] };
        client.send(&Message::Call { what, callers: 1, time: Duration::from_secs(1 << 32) })?;
    }
    for client in &mut clients {
        client.answer::<CallTimes>()?;
    }
    let reached = rate(all, begun.elapsed().as_secs_f64());
    bench.report.value_beside(rows.bare, transport, reached, bare);
    bench.report.value_beside(rows.hashed, transport, reached, hashing);
    drop(clients);
    server.stop()?;
    drop(dir);
    bench.environment.let_disk_recover(all)
}
