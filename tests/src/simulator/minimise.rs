//! Minimises a failing scenario: leaves out everything that it does not need to fail.

use std::collections::BTreeSet;

use super::{Failure, Scenario, run, run_traced};

/// Leaves out faults, operations, users and clients, as long as the scenario fails. The smaller
/// scenario may break another promise. Runs at most `attempts` simulations.
#[must_use]
pub fn minimise(failure: &Failure, attempts: usize) -> Box<Failure> {
    let mut search = Search { best: failure.scenario.clone(), left: attempts };
    let all = failure.scenario.plan().len();
    // First all faults, then halves, and so on down to single ones.
    let mut size = all.max(1);
    while size > 0 {
        for start in (0..all).step_by(size) {
            let mut without = search.best.without.clone();
            without.extend(start..(start + size).min(all));
            search.attempt(Scenario { without, ..search.best.clone() });
        }
        size /= 2;
    }
    search.lower(|scenario| &mut scenario.operations);
    search.lower(|scenario| &mut scenario.users);
    search.lower(|scenario| &mut scenario.clients);
    match run_traced(&search.best) {
        Err(failure) => failure,
        // Unreachable: the scenario has failed before, and simulations are deterministic.
        Ok(_) => Box::new(failure.clone()),
    }
}

struct Search {
    best: Scenario,
    left: usize,
}

impl Search {
    fn attempt(&mut self, scenario: Scenario) -> bool {
        let same = (&scenario.without, scenario.operations, scenario.users, scenario.clients);
        let best: (&BTreeSet<usize>, usize, usize, usize) =
            (&self.best.without, self.best.operations, self.best.users, self.best.clients);
        if self.left == 0 || same == best {
            return false;
        }
        self.left -= 1;
        let fails = run(&scenario).is_err();
        if fails {
            self.best = scenario;
        }
        fails
    }

    /// Makes a number as small as possible.
    fn lower(&mut self, number: impl Fn(&mut Scenario) -> &mut usize) {
        let mut least = 1;
        loop {
            let mut scenario = self.best.clone();
            let now = *number(&mut scenario);
            if least >= now {
                return;
            }
            let middle = (least + now) / 2;
            *number(&mut scenario) = middle;
            if !self.attempt(scenario) {
                least = middle + 1;
            }
        }
    }
}
