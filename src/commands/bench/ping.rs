//! The latency of a small request while a large blob is loaded, on the same connection and on
//! another.
//!
//! The small request loads an object, as programs do between large transfers.

use std::io;

use blobferry_protocol::{BlobId, Oid, Tid};

use super::messages::{CallTimes, Message, Stored};
use super::report::{RowId, Target, Unit};
use super::{Bench, Setup, baselines, size_name};
use crate::transport::Transport;

/// The bytes of a small answer.
const TINY: usize = 64;

/// The figures for one choice of connection.
struct Way {
    on_another: bool,
    p50: RowId,
    p99: RowId,
}

/// Measures the section.
pub(super) fn run(bench: &mut Bench) -> io::Result<()> {
    let name = size_name(bench.plan.largest);
    let ways = [("same", false), ("other", true)].map(|(which, on_another)| {
        let mut row = |part: &str, target| {
            let what = format!("small request during load of {name}, {which} connection, {part}");
            bench.row(
                &format!("ping-{which}-{part}"),
                &what,
                Unit::Milliseconds,
                Some(Target::AtMost(target)),
            )
        };
        Way { on_another, p50: row("p50", 1.0), p99: row("p99", 5.0) }
    });
    let file = bench.environment.file("source", bench.plan.largest)?;
    let store = Message::StoreFile { path: file.clone(), count: 1 };
    for round in 0..bench.plan.rounds {
        bench.environment.doing("bare round trips")?;
        let bare = baselines::round_trip(TINY, 1, bench.plan.trips)? * 1e3;
        ways.iter().for_each(|way| bench.report.limit(way.p50, bare));
        for transport in bench.transports(round) {
            one(bench, &ways, transport, &store)?;
        }
    }
    std::fs::remove_file(file)
}

fn one(bench: &mut Bench, ways: &[Way], transport: Transport, store: &Message) -> io::Result<()> {
    let size = bench.plan.largest;
    let dir = bench.new_dir()?;
    bench.environment.doing(format!("storing a blob and an object, {}", transport.name()))?;
    let server = bench.serve(transport, dir.path())?;
    let setup = Setup { transport, server: &server, dir: dir.path() };
    let mut client = setup.client()?;
    let stored: CallTimes = client.ask(store)?;
    let object: Stored = client.ask(&Message::Fill { count: 1, blob: None })?;
    drop(client);
    bench.environment.let_disk_recover(size)?;
    let (oid, tid) = stored.committed.first().copied().unwrap_or((Oid::ROOT, Tid::ZERO));
    let ping = object.oids.first().copied().unwrap_or(Oid::ROOT);
    for way in ways {
        bench.warm_server(dir.path())?;
        bench.environment.doing(format!("small requests beside a large one, {}", transport.name()))?;
        let message = Message::Ping { oid: ping, during: BlobId { oid, tid }, on_another: way.on_another };
        let pinged: CallTimes = setup.client()?.ask(&message)?;
        bench.report.value(way.p50, Some(transport), pinged.p50 * 1e3);
        bench.report.value(way.p99, Some(transport), pinged.p99 * 1e3);
        bench.environment.let_disk_recover(size)?;
    }
    server.stop()
}
