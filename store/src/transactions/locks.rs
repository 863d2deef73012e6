//! Locks on objects: a request takes all of its locks at once, first come first served.
//!
//! Every requested object has a queue. A request enters the queues of all its objects when it is
//! made, and holds its locks when it is first in each of them. So no later request for one of its
//! objects overtakes it, and requests without a common object never wait for each other. Whole
//! requests are queued in one order, so there is no deadlock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use blobferry_protocol::Oid;

/// The queues of all objects. `K` identifies a request.
#[derive(Debug)]
pub(crate) struct LockTable<K> {
    /// The first request in each object's queue. Most queues have no others.
    first: BTreeMap<Oid, K>,
    /// The requests behind the first, if there are any.
    behind: BTreeMap<Oid, VecDeque<K>>,
    requests: BTreeMap<K, Request>,
    /// How many requests were made.
    made: u64,
}

#[derive(Debug)]
struct Request {
    /// The place in the order of all requests.
    number: u64,
    oids: Arc<[Oid]>,
    /// The number of queues in which it is not the first.
    behind_in: usize,
}

impl<K: Copy + Ord> LockTable<K> {
    pub(crate) fn new() -> LockTable<K> {
        LockTable { first: BTreeMap::new(), behind: BTreeMap::new(), requests: BTreeMap::new(), made: 0 }
    }

    /// Requests locks on `oids`, which are distinct. `id` must have no request yet.
    ///
    /// Returns whether it holds them now. Otherwise a later [`release`](LockTable::release) returns
    /// it when it does.
    pub(crate) fn request(&mut self, id: K, oids: Arc<[Oid]>) -> bool {
        let mut behind_in = 0;
        for oid in oids.iter() {
            if self.first.contains_key(oid) {
                self.behind.entry(*oid).or_default().push_back(id);
                behind_in += 1;
            } else {
                self.first.insert(*oid, id);
            }
        }
        self.made += 1;
        self.requests.insert(id, Request { number: self.made, oids, behind_in });
        behind_in == 0
    }

    /// Returns whether a request holds all its locks.
    pub(crate) fn holds(&self, id: K) -> bool {
        self.requests.get(&id).is_some_and(|request| request.behind_in == 0)
    }

    /// Removes a request, whether or not it holds its locks. Returns the requests that hold theirs
    /// because of it, in the order in which they were made.
    pub(crate) fn release(&mut self, id: K) -> Vec<K> {
        let Some(request) = self.requests.remove(&id) else { return Vec::new() };
        let mut granted = Vec::new();
        for oid in request.oids.iter() {
            if let Some(number) = self.leave(*oid, id) {
                granted.push(number);
            }
        }
        granted.sort_unstable();
        granted.into_iter().map(|(_, next)| next).collect()
    }

    /// Removes a request from one queue. Returns the next one there, with its number, if it holds
    /// all its locks now.
    fn leave(&mut self, oid: Oid, id: K) -> Option<(u64, K)> {
        if self.first.get(&oid) != Some(&id) {
            let behind = self.behind.get_mut(&oid)?;
            behind.retain(|other| *other != id);
            if behind.is_empty() {
                self.behind.remove(&oid);
            }
            return None;
        }
        let Some(behind) = self.behind.get_mut(&oid) else {
            self.first.remove(&oid);
            return None;
        };
        let next = behind.pop_front()?;
        if behind.is_empty() {
            self.behind.remove(&oid);
        }
        self.first.insert(oid, next);
        let request = self.requests.get_mut(&next)?;
        request.behind_in -= 1;
        (request.behind_in == 0).then_some((request.number, next))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn oids(oids: &[u64]) -> Arc<[Oid]> {
        oids.iter().copied().map(Oid).collect()
    }

    #[test]
    fn requests_without_a_common_object_do_not_wait() {
        let mut table = LockTable::new();
        assert!(table.request('a', oids(&[1, 2])));
        assert!(table.request('b', oids(&[3])));
        assert!(table.request('c', oids(&[])));
        assert!(table.holds('a') && table.holds('b') && table.holds('c'));
    }

    #[test]
    fn a_waiting_request_is_not_overtaken() {
        let mut table = LockTable::new();
        assert!(table.request('a', oids(&[1])));
        assert!(!table.request('b', oids(&[1, 2])));
        assert!(!table.request('c', oids(&[2])), "object 2 is free, but b was here before");
        assert_eq!(table.release('a'), ['b']);
        assert!(!table.holds('c'));
        assert_eq!(table.release('b'), ['c']);
    }

    #[test]
    fn a_withdrawn_request_lets_later_ones_pass() {
        let mut table = LockTable::new();
        assert!(table.request('a', oids(&[1])));
        assert!(!table.request('b', oids(&[1, 2, 3])));
        assert!(!table.request('d', oids(&[3])));
        assert!(!table.request('c', oids(&[2])));
        assert_eq!(table.release('b'), ['d', 'c'], "in the order in which they were made");
        assert_eq!(table.release('b'), []);
        assert_eq!(table.release('a'), []);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Request(BTreeSet<u64>),
        Release(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::collection::btree_set(0..6u64, 0..4).prop_map(Step::Request),
            any::<prop::sample::Index>().prop_map(Step::Release),
        ]
    }

    /// The rule, stated directly: a request holds its locks if no earlier one wants any of its
    /// objects.
    fn holders(here: &[(u32, BTreeSet<u64>)]) -> Vec<u32> {
        let free = |at: usize| here[..at].iter().all(|(_, earlier)| earlier.is_disjoint(&here[at].1));
        (0..here.len()).filter(|at| free(*at)).map(|at| here[at].0).collect()
    }

    proptest! {
        #[test]
        fn locks_follow_the_rule_and_every_request_is_granted(steps in prop::collection::vec(step(), 0..60)) {
            let mut table = LockTable::new();
            let mut here: Vec<(u32, BTreeSet<u64>)> = Vec::new();
            for (id, step) in (0u32..).zip(steps) {
                let before = holders(&here);
                let granted = match step {
                    Step::Request(wanted) => {
                        let oids: Vec<u64> = wanted.iter().copied().collect();
                        here.push((id, wanted));
                        if table.request(id, super::tests::oids(&oids)) { vec![id] } else { vec![] }
                    }
                    Step::Release(index) if !here.is_empty() => {
                        let (gone, _) = here.remove(index.index(here.len()));
                        table.release(gone)
                    }
                    Step::Release(_) => continue,
                };
                let after = holders(&here);
                let added: Vec<u32> = after.iter().copied().filter(|id| !before.contains(id)).collect();
                prop_assert_eq!(granted, added);
                for (id, _) in &here {
                    prop_assert_eq!(table.holds(*id), after.contains(id));
                }
            }
            while let Some((first, _)) = here.first().cloned() {
                prop_assert!(table.holds(first), "the first request never waits");
                table.release(first);
                here.remove(0);
            }
            prop_assert!(table.first.is_empty() && table.behind.is_empty() && table.requests.is_empty());
        }
    }
}
