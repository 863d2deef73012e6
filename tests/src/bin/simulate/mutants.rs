//! `simulate mutants`: plants one bug after the other, and sees whether it is caught.

use std::process::ExitCode;

#[cfg(blobferry_planted)]
use blobferry_protocol::planted::{Bug, plant};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Mutants {
    /// How many seeds a bug may survive
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    from: u64,
    /// Only the bug of this name
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

impl Mutants {
    #[cfg(not(blobferry_planted))]
    pub(crate) fn run(&self) -> ExitCode {
        let Mutants { seeds: _, from: _, only: _ } = self;
        eprintln!("no bugs are planted in this build: build it with RUSTFLAGS=\"--cfg blobferry_planted\"");
        ExitCode::FAILURE
    }

    #[cfg(blobferry_planted)]
    pub(crate) fn run(&self) -> ExitCode {
        let mut survivors = 0;
        println!("| bug | what goes wrong | caught by | how |\n|---|---|---|---|");
        let wanted = |bug: &&Bug| self.only.as_ref().is_none_or(|only| bug.name() == only);
        for bug in Bug::ALL.iter().filter(wanted) {
            plant(Some(*bug));
            let caught = self.catch(*bug);
            plant(None);
            let (by, how) = caught.unwrap_or_else(|| {
                survivors += 1;
                ("NOBODY".to_owned(), String::new())
            });
            println!("| {} | {} | {by} | {how} |", bug.name(), bug.what().trim());
        }
        match survivors {
            0 => ExitCode::SUCCESS,
            _ => {
                eprintln!("{survivors} planted bugs were not caught");
                ExitCode::FAILURE
            }
        }
    }

    /// Who catches the bug that is planted, and what is said then.
    #[cfg(blobferry_planted)]
    fn catch(&self, _bug: Bug) -> Option<(String, String)> {
        use blobferry_tests::simulator::{Scenario, run};

        for (nth, seed) in (self.from..self.from.saturating_add(self.seeds)).enumerate() {
            if let Err(failure) = run(&Scenario::of(seed)) {
                return Some((format!("the simulator, seed {seed} (its {}.)", nth + 1), failure.what));
            }
        }
        None
    }
}
