//! Short forms of what `simulate` can do for hours.
//!
//! Each test runs a process in a mount namespace of its own. Without root it prints so, and is
//! skipped.

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
    //! Runs `simulate`.

    use std::process::Command;

    /// Runs `simulate`, which must succeed. Returns its report, or `None` if it was skipped.
    #[track_caller]
    pub(crate) fn simulate(arguments: &[&str]) -> Option<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_simulate")).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("{said}");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (!said.starts_with("skipped: ")).then_some(said)
    }

    /// Returns the number before a word in a report.
    #[track_caller]
    pub(crate) fn figure(report: &str, word: &str) -> u64 {
        let words: Vec<&str> = report.split([' ', ',', ':', ';']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|it| *it == word).unwrap();
        words[at - 1].parse().unwrap()
    }
}
