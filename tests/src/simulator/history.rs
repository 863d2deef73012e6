//! Checks that a history of commits and reads is strictly serializable.
//!
//! Every commit reports its tid. So the order of all writes is known, and only the reads have to be
//! placed between them. A history is *strictly serializable* exactly if no operation has to precede
//! itself, given that:
//!
//! * commits are in the order of their tids;
//! * a read follows the commit of the revision that it found, and precedes the next commit of the
//!   same object;
//! * an operation that ended before another began precedes it.
//!
//! The idea is from Gibbons and Korach (Testing Shared Memories, 1997). The problem is easy if the
//! order of writes is known.

use std::collections::BTreeMap;

/// One operation, from its request to its answer, as moments of one clock. A transaction that was
/// never answered ends at [`u64::MAX`]: its moment is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The moment of the request.
    pub begin: u64,
    /// The moment of the answer.
    pub end: u64,
    /// What the operation did.
    pub what: What,
}

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Committed a transaction with new revisions of these objects.
    Commit {
        /// Its tid.
        tid: u64,
        /// Its objects.
        oids: Vec<u64>,
    },
    /// Read the current revision of an object.
    Read {
        /// The object.
        oid: u64,
        /// The tid of the revision that was found, or 0 for none.
        tid: u64,
    },
}

/// Checks a history.
///
/// # Errors
/// Names the operations that contradict each other.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let mut commits: Vec<(u64, usize)> = Vec::new();
    let mut revisions: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (place, operation) in history.iter().enumerate() {
        if let What::Commit { tid, oids } = &operation.what {
            commits.push((*tid, place));
            oids.iter().for_each(|oid| revisions.entry(*oid).or_default().push(*tid));
        }
    }
    commits.sort_unstable();
    for pair in commits.windows(2) {
        if let [one, other] = pair
            && one.0 == other.0
        {
            return Err(format!("two commits have one tid: {:?}, {:?}", history[one.1], history[other.1]));
        }
    }
    revisions.values_mut().for_each(|tids| tids.sort_unstable());
    // The places that each operation may have, as numbers of commits before it.
    let rank: BTreeMap<u64, usize> = commits.iter().enumerate().map(|(n, (tid, _))| (*tid, n)).collect();
    let mut spans = Vec::with_capacity(history.len());
    for operation in history {
        let span = match &operation.what {
            // A commit is the last of the commits before its own place.
            What::Commit { tid, .. } => (rank[tid], rank[tid]),
            What::Read { oid, tid } => {
                let of = revisions.get(oid).map_or(&[][..], Vec::as_slice);
                if *tid != 0 && of.binary_search(tid).is_err() {
                    return Err(format!("what was found was never committed: {operation:?}"));
                }
                let next = of.iter().find(|other| *other > tid);
                let first = if *tid == 0 { 0 } else { rank[tid] + 1 };
                (first, next.map_or(commits.len(), |next| rank[next]))
            }
        };
        spans.push(span);
    }
    in_time(history, &spans)
}

/// Gives every operation the first place that it may have, in the order of their ends. An operation
/// must not need a later place than one that began after its end can have.
fn in_time(history: &[Operation], spans: &[(usize, usize)]) -> Result<(), String> {
    // A read at place n precedes the commit of rank n, which precedes the reads at place n + 1.
    // Both are doubled, to have them on one number line.
    let line = |place: usize| match history[place].what {
        What::Commit { .. } => (2 * spans[place].0 + 1, 2 * spans[place].1 + 1),
        What::Read { .. } => (2 * spans[place].0, 2 * spans[place].1),
    };
    let mut by_end: Vec<usize> = (0..history.len()).filter(|place| history[*place].end != u64::MAX).collect();
    by_end.sort_unstable_by_key(|place| history[*place].end);
    let mut by_begin: Vec<usize> = (0..history.len()).collect();
    by_begin.sort_unstable_by_key(|place| history[*place].begin);
    // The latest place that an ended operation needs, and that operation.
    let (mut ended, mut least, mut needs) = (by_end.into_iter().peekable(), 0, None);
    let mut placed = vec![0; history.len()];
    for place in by_begin {
        while let Some(other) = ended.next_if(|other| history[*other].end < history[place].begin) {
            if placed[other] > least {
                (least, needs) = (placed[other], Some(other));
            }
        }
        let (first, last) = line(place);
        if last < least {
            let before = needs.map(|needs| &history[needs]);
            return Err(format!("{:?} was seen after {before:?}", history[place]));
        }
        placed[place] = first.max(least);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(begin: u64, end: u64, tid: u64, oids: &[u64]) -> Operation {
        Operation { begin, end, what: What::Commit { tid, oids: oids.to_vec() } }
    }

    fn read(begin: u64, end: u64, oid: u64, tid: u64) -> Operation {
        Operation { begin, end, what: What::Read { oid, tid } }
    }

    #[test]
    fn sequential_history_is_accepted() {
        let history = [
            read(1, 2, 7, 0),
            commit(3, 4, 10, &[7]),
            read(5, 6, 7, 10),
            commit(7, 8, 11, &[7, 8]),
            read(9, 10, 8, 11),
            read(11, 12, 7, 11),
        ];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn concurrent_read_may_find_either_revision() {
        for found in [0, 10] {
            assert_eq!(check(&[commit(1, 10, 10, &[7]), read(2, 3, 7, found)]), Ok(()));
        }
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(check(&[commit(1, 2, 10, &[7]), read(3, 4, 7, 0)]).is_err());
        let history = [commit(1, 2, 10, &[7]), commit(3, 4, 11, &[7]), read(5, 6, 7, 10)];
        assert!(check(&history).is_err());
    }

    #[test]
    fn reads_do_not_go_back() {
        let history = [commit(1, 20, 10, &[7]), read(2, 3, 7, 10), read(4, 5, 7, 0)];
        assert!(check(&history).is_err());
        let history = [commit(1, 20, 10, &[7]), read(2, 5, 7, 10), read(4, 6, 7, 0)];
        assert_eq!(check(&history), Ok(()), "at the same time they may");
    }

    #[test]
    fn reads_never_find_later_or_missing_commits() {
        assert!(check(&[read(1, 2, 7, 10), commit(3, 4, 10, &[7])]).is_err());
        assert!(check(&[read(1, 2, 7, 10)]).is_err());
        assert!(check(&[commit(1, 2, 10, &[8]), read(1, 2, 7, 10)]).is_err());
    }

    #[test]
    fn answered_transaction_precedes_a_later_one() {
        assert!(check(&[commit(1, 2, 11, &[7]), commit(3, 4, 10, &[8])]).is_err());
        assert_eq!(check(&[commit(1, 5, 11, &[7]), commit(3, 4, 10, &[8])]), Ok(()));
        assert!(check(&[commit(1, 2, 10, &[7]), commit(1, 2, 10, &[8])]).is_err());
    }

    #[test]
    fn two_objects_of_one_transaction_appear_together() {
        let history = [commit(1, 20, 10, &[7, 8]), read(2, 3, 7, 10), read(4, 5, 8, 0)];
        assert!(check(&history).is_err());
    }

    #[test]
    fn unanswered_commit_may_be_seen_any_time_after_its_request() {
        let unknown = commit(5, u64::MAX, 10, &[7]);
        assert_eq!(check(&[unknown.clone(), read(30, 31, 7, 0), read(50, 51, 7, 10)]), Ok(()));
        assert!(check(&[unknown, read(1, 2, 7, 10)]).is_err());
    }

    #[test]
    fn contradiction_of_several_operations_is_found() {
        // The read follows 12 in time, and precedes 11 by what it found.
        let history = [commit(1, 30, 11, &[7]), commit(2, 3, 12, &[8]), read(4, 5, 7, 0)];
        assert!(check(&history).is_err());
    }
}
