//! Who may go ahead: locks on objects, taken all at once, first come first served.
//!
//! Every object that somebody wants has a queue. A request stands in the queues of all its objects from the moment
//! it is made, and holds its locks as soon as it is first in each of them. So nobody is overtaken by a later request
//! that wants one of the same objects, requests that have no object in common never wait for each other, and as
//! whole requests queue up in one order, they cannot wait for each other in a circle.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use blobferry_protocol::Oid;

/// The queues of all objects, by the names `K` of those who stand in them.
#[derive(Debug)]
pub(crate) struct LockTable<K> {
    /// The first in each object's queue. (Apart from the rest: most queues have no rest.)
    first: BTreeMap<Oid, K>,
    /// Those behind the first, where there are any.
    behind: BTreeMap<Oid, VecDeque<K>>,
    requests: BTreeMap<K, Request>,
    asked: u64,
}

#[derive(Debug)]
struct Request {
    /// The order of requests.
    number: u64,
    oids: Arc<[Oid]>,
    /// In how many queues it is not the first.
    behind_in: usize,
}

impl<K: Copy + Ord> LockTable<K> {
    pub(crate) fn new() -> LockTable<K> {
        LockTable { first: BTreeMap::new(), behind: BTreeMap::new(), requests: BTreeMap::new(), asked: 0 }
    }

    /// Asks for locks on `oids` (each named once), for someone who has asked for none. Says whether it has them
    /// now; otherwise a [`release`](LockTable::release) will say when.
    pub(crate) fn request(&mut self, who: K, oids: Arc<[Oid]>) -> bool {
        let mut behind_in = 0;
        for oid in oids.iter() {
            if self.first.contains_key(oid) {
                self.behind.entry(*oid).or_default().push_back(who);
                behind_in += 1;
            } else {
                self.first.insert(*oid, who);
            }
        }
        self.asked += 1;
        self.requests.insert(who, Request { number: self.asked, oids, behind_in });
        behind_in == 0
    }

    /// Whether it has all the locks that it asked for.
    pub(crate) fn holds(&self, who: K) -> bool {
        self.requests.get(&who).is_some_and(|request| request.behind_in == 0)
    }

    /// Gives locks back, or the wish for them up. Returns those who hold theirs now because of it, in the order in
    /// which they asked.
    pub(crate) fn release(&mut self, who: K) -> Vec<K> {
        let Some(request) = self.requests.remove(&who) else { return Vec::new() };
        let mut granted = Vec::new();
        for oid in request.oids.iter() {
            if let Some(number) = self.leave(*oid, who) {
                granted.push(number);
            }
        }
        granted.sort_unstable();
        granted.into_iter().map(|(_, next)| next).collect()
    }

    /// Leaves one queue. Returns the next one there, with the number of its request, if that now has all its locks.
    fn leave(&mut self, oid: Oid, who: K) -> Option<(u64, K)> {
        if self.first.get(&oid) != Some(&who) {
            let behind = self.behind.get_mut(&oid)?;
            behind.retain(|other| *other != who);
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
        assert_eq!(table.release('b'), ['d', 'c'], "in the order in which they asked");
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

    /// The rule in its own words: one holds its locks if no earlier one, still here, wants any of its objects.
    fn holders(here: &[(u32, BTreeSet<u64>)]) -> Vec<u32> {
        let free = |at: usize| here[..at].iter().all(|(_, earlier)| earlier.is_disjoint(&here[at].1));
        (0..here.len()).filter(|at| free(*at)).map(|at| here[at].0).collect()
    }

    proptest! {
        #[test]
        fn locks_follow_the_rule_and_every_request_is_granted(steps in prop::collection::vec(step(), 0..60)) {
            let mut table = LockTable::new();
            let mut here: Vec<(u32, BTreeSet<u64>)> = Vec::new();
            for (who, step) in (0u32..).zip(steps) {
                let before = holders(&here);
                let granted = match step {
                    Step::Request(wanted) => {
                        let oids: Vec<u64> = wanted.iter().copied().collect();
                        here.push((who, wanted));
                        if table.request(who, super::tests::oids(&oids)) { vec![who] } else { vec![] }
                    }
                    Step::Release(index) if !here.is_empty() => {
                        let (gone, _) = here.remove(index.index(here.len()));
                        table.release(gone)
                    }
                    Step::Release(_) => continue,
                };
                let after = holders(&here);
                let news: Vec<u32> = after.iter().copied().filter(|who| !before.contains(who)).collect();
                prop_assert_eq!(granted, news);
                for (who, _) in &here {
                    prop_assert_eq!(table.holds(*who), after.contains(who));
                }
            }
            while let Some((first, _)) = here.first().cloned() {
                prop_assert!(table.holds(first), "the first in line never waits");
                table.release(first);
                here.remove(0);
            }
            prop_assert!(table.first.is_empty() && table.behind.is_empty() && table.requests.is_empty());
        }
    }
}
