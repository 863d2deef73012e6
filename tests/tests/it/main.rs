//! Short forms of what `simulate` can do for hours.
//!
//! Each runs as a process of its own, in a place of its own. Where that can not be had, as by other users than root, it
//! says so, and is skipped.

#[cfg(test)]
mod ioerrors;
#[cfg(test)]
mod killpoints;
#[cfg(test)]
mod powercut;
#[cfg(test)]
mod simulator;

#[cfg(test)]
mod support {
    //! Running it.

    use std::process::Command;

    /// Runs `simulate`; nothing must be wrong. `None` where it is skipped, else what it reports.
    #[track_caller]
    pub(crate) fn simulate(arguments: &[&str]) -> Option<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_simulate")).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("{said}");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (!said.starts_with("skipped: ")).then_some(said)
    }

    /// The number before a word in a report.
    #[track_caller]
    pub(crate) fn figure(report: &str, word: &str) -> u64 {
        let words: Vec<&str> = report.split([' ', ',', ':', ';']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|it| *it == word).unwrap();
        words[at - 1].parse().unwrap()
    }
}
