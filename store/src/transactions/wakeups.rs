//! Who of the two who work at the desk rests, and what they are called for.
//!
//! To call somebody costs a system call, and to be called for nothing two changes of threads: most of what happens at
//! the desk concerns neither of them. So each says what it waits for.

use std::time::Instant;

/// Who rests.
#[derive(Debug, Default)]
pub(crate) struct Sleepers {
    /// The committer does, until so many jobs are queued.
    committer: Option<usize>,
    /// The maintenance does, until this moment if it is not called before.
    maintenance: Option<Option<Instant>>,
}

/// Who is to be called.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wake {
    pub(crate) committer: bool,
    pub(crate) maintenance: bool,
}

impl Sleepers {
    /// The committer rests until so many jobs are queued, or works.
    pub(crate) fn committer(&mut self, until: Option<usize>) {
        self.committer = until;
    }

    /// The maintenance rests until it is called or a moment has come, or works.
    pub(crate) fn maintenance(&mut self, until: Option<Option<Instant>>) {
        self.maintenance = until;
    }

    /// Who is to be called when so many jobs are queued (or one will be soon), a vote waits to be checked or not, and
    /// this is the next deadline: once, and only who rests. Where everything `stops`, all are.
    pub(crate) fn call(&mut self, jobs: usize, votes: bool, deadline: Option<Instant>, stops: bool) -> Wake {
        let committer = self.committer.take_if(|until| stops || jobs >= *until);
        let sooner = |until: Option<Instant>| {
            deadline.is_some_and(|deadline| until.is_none_or(|until| deadline < until))
        };
        let maintenance = self.maintenance.take_if(|until| stops || votes || sooner(*until));
        Wake { committer: committer.is_some(), maintenance: maintenance.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const COMMITTER: Wake = Wake { committer: true, maintenance: false };
    const STEWARD: Wake = Wake { committer: false, maintenance: true };
    const NOBODY: Wake = Wake { committer: false, maintenance: false };

    #[test]
    fn the_committer_is_called_once_when_enough_is_queued() {
        let mut rest = Sleepers::default();
        assert_eq!(rest.call(5, true, None, true), NOBODY, "both work");
        rest.committer(Some(3));
        assert_eq!(rest.call(2, true, None, false), NOBODY);
        assert_eq!(rest.call(3, true, None, false), COMMITTER);
        assert_eq!(rest.call(4, true, None, false), NOBODY);
    }

    #[test]
    fn the_steward_is_called_for_votes_and_for_deadlines_before_the_one_that_it_knows() {
        let (now, mut rest) = (Instant::now(), Sleepers::default());
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        rest.maintenance(Some(None));
        assert_eq!(rest.call(1, false, None, false), NOBODY);
        assert_eq!(rest.call(0, false, at(9), false), STEWARD);
        rest.maintenance(Some(at(9)));
        assert_eq!(rest.call(0, false, at(9), false), NOBODY);
        assert_eq!(rest.call(0, false, at(8), false), STEWARD);
        rest.maintenance(Some(at(8)));
        assert_eq!(rest.call(0, true, at(9), false), STEWARD);
    }

    #[test]
    fn all_who_rest_are_called_when_everything_stops() {
        let mut rest = Sleepers::default();
        rest.committer(Some(1));
        rest.maintenance(Some(None));
        assert_eq!(rest.call(0, false, None, true), Wake { committer: true, maintenance: true });
    }
}
