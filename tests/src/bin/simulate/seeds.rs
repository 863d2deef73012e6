//! `simulate`: runs one simulation for each seed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use blobferry_tests::simulator::minimise::minimise;
use blobferry_tests::simulator::{Failure, Report, Scenario, run, run_traced};
use clap::Args;

/// The most simulations to find out what a failing scenario does not need.
const ATTEMPTS: usize = 200;
/// The number of trace lines that are printed without `--trace`.
const LINES: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct Seeds {
    /// How many seeds to try
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    from: u64,
    /// Stop after this number of seconds, whatever the number of seeds
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Inject faults of all kinds, and often
    #[arg(long)]
    rough: bool,
    /// Show all that happens
    #[arg(long)]
    trace: bool,
    /// Leave out these of the faults, by their numbers
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    without: Vec<usize>,
    /// Another number of clients
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// Another number of users of each client
    #[arg(long, value_name = "N")]
    users: Option<usize>,
    /// Another number of operations of each user
    #[arg(long, value_name = "N")]
    operations: Option<usize>,
}

impl Seeds {
    pub(crate) fn run(&self) -> ExitCode {
        let begin = Instant::now();
        let limit = self.seconds.map(Duration::from_secs);
        let mut total = Report::default();
        let mut failed = false;
        for seed in self.from..self.from.saturating_add(self.seeds) {
            if limit.is_some_and(|limit| begin.elapsed() >= limit) {
                break;
            }
            match self.simulate(&self.scenario(seed)) {
                Ok(report) => total += report,
                Err(failure) => {
                    failed = true;
                    self.print_failure(&failure);
                    break;
                }
            }
        }
        println!("{total}, in {:.1} s", begin.elapsed().as_secs_f64());
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn scenario(&self, seed: u64) -> Scenario {
        let mut scenario = if self.rough { Scenario::rough(seed) } else { Scenario::of(seed) };
        scenario.without.extend(&self.without);
        scenario.clients = self.clients.unwrap_or(scenario.clients);
        scenario.users = self.users.unwrap_or(scenario.users);
        scenario.operations = self.operations.unwrap_or(scenario.operations);
        scenario
    }

    fn simulate(&self, scenario: &Scenario) -> Result<Report, Box<Failure>> {
        if !self.trace {
            return run(scenario);
        }
        let (report, trace) = run_traced(scenario).inspect_err(|failure| print(&failure.trace))?;
        print(&trace);
        Ok(report)
    }

    /// Prints a failure, and what of its scenario it needs.
    fn print_failure(&self, failure: &Failure) {
        println!("{failure}");
        if self.trace {
            return;
        }
        let least = minimise(failure, ATTEMPTS);
        let skipped = least.trace.len().saturating_sub(LINES);
        println!(
            "\nThe smallest scenario that was found to fail; its last {LINES} lines of {}:",
            least.trace.len()
        );
        print(least.trace.get(skipped..).unwrap_or_default());
        println!("\n{least}");
    }
}

fn print(trace: &[String]) {
    trace.iter().for_each(|line| println!("{line}"));
}
