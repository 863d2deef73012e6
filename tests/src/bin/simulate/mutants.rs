//! `simulate mutants`: plants one bug after the other, and checks that each is caught.

use std::process::ExitCode;

#[cfg(feature = "planted")]
use blobferry_protocol::planted::{Bug, plant};
#[cfg(feature = "planted")]
use blobferry_tests::simulator::{Scenario, run};
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
    #[cfg(not(feature = "planted"))]
    pub(crate) fn run(&self) -> ExitCode {
        let Mutants { seeds: _, from: _, only: _ } = self;
        eprintln!("no bugs are planted in this build: build it with --features planted");
        ExitCode::FAILURE
    }

    #[cfg(feature = "planted")]
    pub(crate) fn run(&self) -> ExitCode {
        let (mut survivors, mut untried) = (0, 0);
        println!("| bug | what goes wrong | caught by | how |\n|---|---|---|---|");
        let wanted = |bug: &&Bug| self.only.as_ref().is_none_or(|only| bug.name() == only);
        for bug in Bug::ALL.iter().filter(wanted) {
            plant(Some(*bug));
            let caught = self.catch(*bug);
            plant(None);
            let (by, message) = match caught {
                Caught::By(test, message) => (test, message),
                Caught::Nowhere => {
                    survivors += 1;
                    ("NOTHING".to_owned(), String::new())
                }
                Caught::NotTried(why) => {
                    untried += 1;
                    ("nothing".to_owned(), why)
                }
            };
            println!("| `{}` | {} | {by} | {message} |", bug.name(), bug.what().trim());
        }
        if untried > 0 {
            eprintln!(
                "{untried} planted bugs were not caught, and the tests that would catch them cannot run here"
            );
        }
        match survivors {
            0 => ExitCode::SUCCESS,
            _ => {
                eprintln!("{survivors} planted bugs were not caught");
                ExitCode::FAILURE
            }
        }
    }

    /// Returns what catches the planted bug, and its message.
    #[cfg(feature = "planted")]
    fn catch(&self, bug: Bug) -> Caught {
        self.simulate().unwrap_or_else(|| with_real_files(bug))
    }

    #[cfg(feature = "planted")]
    fn simulate(&self) -> Option<Caught> {
        for (nth, seed) in (self.from..self.from.saturating_add(self.seeds)).enumerate() {
            if let Err(failure) = run(&Scenario::rough(seed)) {
                return Some(Caught::By(
                    format!("the simulator, its {}. seed ({seed})", nth + 1),
                    failure.what,
                ));
            }
        }
        None
    }
}

/// What became of a planted bug.
#[cfg(feature = "planted")]
enum Caught {
    /// The name of the test that caught it, and its message.
    By(String, String),
    Nowhere,
    /// This machine cannot run the test that would catch it.
    NotTried(String),
}

/// Tries the bug on real files, with this program's other commands.
#[cfg(feature = "planted")]
fn with_real_files(bug: Bug) -> Caught {
    let mut caught = Caught::Nowhere;
    for arguments in
        [&["powercut", "--cycles", "56"][..], &["killpoints", "--short"], &["ioerrors", "--short"]]
    {
        let command = std::env::current_exe().and_then(|program| {
            std::process::Command::new(program)
                .args(arguments)
                .env(blobferry_tests::PLANTED, bug.name())
                .output()
        });
        let output = match command {
            Ok(output) => output,
            Err(error) => return Caught::NotTried(error.to_string()),
        };
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        if output.status.code() == Some(1) {
            return Caught::By(format!("`simulate {}`", arguments.join(" ")), line);
        }
        if line.starts_with("skipped: ") {
            caught = Caught::NotTried(line);
        }
    }
    caught
}
