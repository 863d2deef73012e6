//! `bench`: measure the performance, relative to the limits of this machine.
//!
//! A round measures the [`baselines`], then each transport, in the same run. Therefore a temporary
//! slowdown of the machine affects all of them.
//!
//! | file | what |
//! |---|---|
//! | [`plan`] | sizes, counts and rounds |
//! | [`environment`] | the directory, progress, pauses for the disk |
//! | [`processes`] | servers and clients, which are child processes |
//! | [`messages`] | requests to a client, and its answers |
//! | [`worker`] | the client: carries out messages |
//! | [`load_generator`] | concurrent callers on one connection |
//! | [`report`] | figures: medians, ratios, targets |
//!
//! Every section has its own file, except that [`large`] also measures memory and processor time,
//! and [`small`] also measures objects.

mod baselines;
mod clients;
mod environment;
mod hits;
mod idle;
mod large;
mod load_generator;
mod messages;
mod ping;
mod plan;
mod processes;
mod report;
mod scale;
mod small;
pub(super) mod worker;

use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blobferry_protocol::BlobId;
use serde::Serialize;
use tempfile::TempDir;

use self::environment::{Environment, IN_MEMORY, file_system};
use self::messages::{CallTimes, Calls, Message};
use self::plan::Plan;
use self::processes::{Client, Server, busy};
use self::report::{Figure, Report, Row, RowId, Target, Unit};
use super::serve::Stop;
use crate::cli::{BenchArgs, Global, Section};
use crate::failure::Failure;
use crate::output::{Output, Render};
use crate::transport::Transport;

/// The part of the processors from which on others have more than a little of them.
const BUSY: f64 = 0.1;

/// Bytes of a small blob.
const SMALL: usize = 10 << 10;

/// A benchmark that is under way.
struct Bench {
    plan: Plan,
    environment: Environment,
    report: Report,
    /// The address of a running server to measure; `None` if the command starts its own.
    server: Option<String>,
    left_out: Vec<LeftOut>,
}

/// A requested figure that cannot be measured.
#[derive(Clone, Debug, Serialize)]
struct LeftOut {
    left_out: String,
    why: String,
}

impl Render for LeftOut {
    fn plain(&self) -> String {
        format!("left out: {} ({})", self.left_out, self.why)
    }
}

impl Render for Figure<'_> {
    fn plain(&self) -> String {
        // The plain output is one table of all figures.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The machine of the benchmark.
#[derive(Serialize)]
struct Machine {
    version: &'static str,
    optimised: bool,
    processors: usize,
    file_system: String,
    directory: PathBuf,
    rounds: usize,
    /// The part of the processors' time that was busy before the benchmark, from 0 to 1.
    busy: Option<f64>,
}

impl Render for Machine {
    fn plain(&self) -> String {
        let Machine { version, optimised, processors, file_system, directory, rounds, busy } = self;
        let build = if *optimised { "" } else { ", a debug build: its figures say nothing" };
        let memory = if file_system == IN_MEMORY { ", which is memory: its syncs say nothing" } else { "" };
        let rounds =
            if *rounds == 1 { "1 round".to_owned() } else { format!("the medians of {rounds} rounds") };
        let busy = busy.filter(|busy| *busy > BUSY).map_or_else(String::new, |busy| {
            let percent = busy * 100.0;
            format!(
                "The machine is busy with something else ({percent:.0} % of it): expect figures to be low.\n"
            )
        });
        let directory = directory.display();
        format!(
            "blobferry {version}{build}; {processors} processors; {directory} on {file_system}{memory}; {rounds}\n\
             {busy}"
        )
    }
}

/// Runs `bench`.
pub(super) async fn run<W: Write>(
    args: &BenchArgs,
    global: &Global,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    // An interrupt also reaches the child processes, which end. This process continues, to clean
    // up.
    let mut stop = Stop::new()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let listening = tokio::spawn(async move {
        stop.requested().await;
        flag.store(true, Ordering::Relaxed);
    });
    let done = measure(args, global, interrupted, output);
    listening.abort();
    done
}

/// Runs the benchmark. It blocks this thread, because it waits for child processes.
fn measure<W: Write>(
    args: &BenchArgs,
    global: &Global,
    interrupted: Arc<AtomicBool>,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let plan = Plan::new(args, global);
    let within = args.dir.clone().map_or_else(default_dir, Ok).map_err(system("finding a directory"))?;
    let environment = Environment::new(&within, !args.quick, interrupted);
    let environment = environment.map_err(system(format!("making a directory in {}", within.display())))?;
    let machine = Machine {
        version: env!("CARGO_PKG_VERSION"),
        optimised: !cfg!(debug_assertions),
        processors: std::thread::available_parallelism().map_or(1, NonZero::get),
        file_system: file_system(environment.path()).unwrap_or_else(|| "an unknown file system".into()),
        directory: within,
        rounds: plan.rounds,
        busy: busy(),
    };
    let server = global.explicit.server.then(|| global.server.clone());
    let mut bench = Bench { plan, environment, report: Report::default(), server, left_out: Vec::new() };
    output.line(&machine)?;
    output.flush()?;
    let measured = bench.sections(output);
    if !output.is_json() {
        // Figures measured so far are printed even if a section fails.
        bench.print(output)?;
    }
    measured
}

/// Returns the current directory; the system's directory for temporary files if that is not
/// writable.
fn default_dir() -> io::Result<PathBuf> {
    let here = std::env::current_dir()?;
    let writable = rustix::fs::access(&here, rustix::fs::Access::WRITE_OK).is_ok();
    Ok(if writable { here } else { std::env::temp_dir() })
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let doing = doing.into();
    move |source| Failure::System { doing, source }
}

impl Bench {
    /// Measures the requested sections. With `--json`, prints the figures of each section when it
    /// is done.
    fn sections<W: Write>(&mut self, output: &mut Output<W>) -> Result<(), Failure> {
        type Measure = fn(&mut Bench) -> io::Result<()>;
        let all: [(&[Section], Measure); 7] = [
            (&[Section::Large, Section::Memory], large::run),
            (&[Section::Clients], clients::run),
            (&[Section::Small, Section::Objects], small::run),
            (&[Section::Hits], hits::run),
            (&[Section::Ping], ping::run),
            (&[Section::Idle], idle::run),
            (&[Section::Scale], scale::run),
        ];
        for (sections, measure) in all {
            if !sections.iter().any(|section| self.plan.has(*section)) {
                continue;
            }
            let (figures, left_out) = (self.report.len(), self.left_out.len());
            measure(self).map_err(system("measuring"))?;
            if output.is_json() {
                self.report.figures(figures).try_for_each(|figure| output.line(&figure))?;
                self.left_out.iter().skip(left_out).try_for_each(|left_out| output.line(left_out))?;
                output.flush()?;
            }
        }
        Ok(())
    }

    fn print<W: Write>(&self, output: &mut Output<W>) -> Result<(), Failure> {
        let written = write!(output.bytes(), "{}", self.report.table(&self.plan.transports));
        written.map_err(Failure::Output)?;
        self.left_out.iter().try_for_each(|left_out| output.line(left_out))?;
        if self.report.has_missed() {
            writeln!(output.bytes(), "!  misses its target").map_err(Failure::Output)?;
        }
        Ok(())
    }

    fn row(&mut self, figure: &str, what: &str, unit: Unit, target: Option<Target>) -> RowId {
        self.report.row(Row { figure: figure.into(), what: what.into(), unit, target })
    }

    /// Records that a requested figure will not be measured.
    fn leave_out(&mut self, what: &str, why: &str) {
        self.left_out.push(LeftOut { left_out: what.into(), why: why.into() });
    }

    /// Returns the transports in the order of a round. The first one rotates.
    fn transports(&self, round: usize) -> Vec<Transport> {
        let mut transports = self.plan.transports.clone();
        let first = round % transports.len().max(1);
        transports.rotate_left(first);
        transports
    }

    /// Returns the server to measure: a new one in `dir`, or the running one.
    fn serve(&self, transport: Transport, dir: &Path) -> io::Result<Server> {
        match &self.server {
            Some(address) => Ok(Server::running(address)),
            None => Server::start(transport, &dir.join("server")),
        }
    }

    /// Makes a directory for a server and its clients.
    fn new_dir(&self) -> io::Result<TempDir> {
        self.environment.scratch()
    }

    /// Reads the blobs of a server that this command started, so that they are in the page cache.
    fn warm_server(&self, dir: &Path) -> io::Result<()> {
        let blobs = dir.join("server/blobs");
        if self.server.is_none() && blobs.exists() { environment::warm(&blobs) } else { Ok(()) }
    }
}

/// A server, a transport to it, and the directory for the caches of its clients.
struct Setup<'a> {
    transport: Transport,
    server: &'a Server,
    dir: &'a Path,
}

impl Setup<'_> {
    /// Starts a client with an empty cache.
    fn client(&self) -> io::Result<Client> {
        let cache = tempfile::Builder::new().prefix("cache-").tempdir_in(self.dir)?;
        Client::start(self.transport, self.server, cache)
    }

    /// Starts a client, and lets it load one blob per directory of its cache, so that all
    /// directories exist. Returns it with the calls for the other blobs.
    fn client_that_has_loaded(&self, loads: Loads, blobs: &[BlobId]) -> io::Result<(Client, Calls)> {
        // Blobs of consecutive objects are in different directories.
        let (first, rest) = blobs.split_at((BlobId::BUCKETS as usize).min(blobs.len() / 2));
        let mut client = self.client()?;
        let order = Message::Call { what: loads(first), callers: 16, time: Duration::from_secs(60) };
        client.ask::<CallTimes>(&order)?;
        Ok((client, loads(rest)))
    }
}

/// Makes the calls that load blobs.
type Loads = fn(&[BlobId]) -> Calls;

/// Formats a size for a figure's name: `64 MiB`.
fn size_name(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

/// Returns millions of bytes per second.
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / 1e6 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_named_in_the_largest_unit() {
        for (bytes, name) in
            [(1 << 30, "1 GiB"), (3 << 29, "1536 MiB"), (10 << 10, "10 KiB"), (1000, "1000 B")]
        {
            assert_eq!(size_name(bytes), name);
        }
    }
}
