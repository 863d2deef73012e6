//! The simulator: some seeds of each kind, and that a simulation depends on its seed alone.

use blobferry_tests::simulator::minimise::minimise;
use blobferry_tests::simulator::{Failure, Report, Scenario, run, run_traced};

fn all(scenarios: impl Iterator<Item = Scenario>) -> Report {
    let mut total = Report::default();
    for scenario in scenarios {
        total += run(&scenario).unwrap_or_else(|failure| panic!("{failure}"));
    }
    total
}

#[test]
fn simulated_cluster_keeps_every_promise_under_faults() {
    let usual = all((0..120).map(Scenario::of));
    let rough = all((0..12).map(Scenario::rough));
    println!("{usual}\n{rough}");
    for report in [usual, rough] {
        // A simulation in which nothing happens would keep all promises, too.
        assert!(report.commits > 500 && report.conflicts > 100 && report.blobs > 500, "{report}");
        assert!(report.deaths > 50 && report.resumed > 10, "{report}");
    }
}

#[test]
fn same_seed_gives_the_same_trace_byte_by_byte() {
    for scenario in [Scenario::of(3), Scenario::of(11), Scenario::rough(2), Scenario::rough(5)] {
        let (first, one) = run_traced(&scenario).unwrap_or_else(|failure| panic!("{failure}"));
        let (second, other) = run_traced(&scenario).unwrap_or_else(|failure| panic!("{failure}"));
        if let Some((one, other)) = one.iter().zip(&other).find(|(one, other)| one != other) {
            panic!("seed {}: first {one}\nthen {other}", scenario.seed);
        }
        assert_eq!(one.len(), other.len());
        assert_eq!(first.trace, second.trace);
    }
}

#[test]
fn scenario_is_expressed_as_command_line_options() {
    let mut scenario = Scenario::rough(7);
    assert_eq!(scenario.options(), " --rough");
    scenario.operations = 1;
    scenario.without.extend([2, 5]);
    assert_eq!(scenario.options(), " --rough --operations 1 --without 2,5");
    // A scenario that does not fail is returned as it was.
    let fine = Failure { scenario: Scenario::of(5), what: "nothing".to_owned(), trace: Vec::new() };
    assert_eq!(minimise(&fine, 3).what, "nothing");
}
