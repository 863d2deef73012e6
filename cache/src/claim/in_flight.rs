//! Who in this process is in charge of which blob, and who waits for it: the rules, without files or threads.
//!
//! A bucket is here as long as somebody wants a blob of it. It is in one of two states:
//!
//! * *wanted*: its file lock is held elsewhere, and one helper thread waits for it. Everybody waits.
//! * *held*: this process has the file lock. For every blob that is wanted exactly one is in charge (looks, or
//!   downloads); the others who want it wait behind him, first come first served.
//!
//! The last one in charge takes the bucket with him, and so releases the file lock.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use blobferry_protocol::BlobId;

/// The buckets that somebody wants something of. `L` is the file lock, `W` is one who waits.
#[derive(Debug)]
pub(crate) struct InFlight<L, W> {
    buckets: BTreeMap<u64, Bucket<L, W>>,
}

#[derive(Debug)]
struct Bucket<L, W> {
    /// `None` while it is wanted.
    lock: Option<L>,
    /// The blobs that are wanted, and who waits. While the lock is held, one more than these is in charge.
    blobs: BTreeMap<BlobId, VecDeque<W>>,
}

/// What becomes of one who enters.
#[derive(Debug)]
pub(crate) enum Admission<W> {
    /// It is in charge of the blob.
    InCharge(W),
    /// It waits, and will be heard of.
    Waits,
    /// It waits, and the caller must see to it that somebody waits for the bucket's file lock.
    WaitsForLock,
    /// The file lock can not be had. It has not entered.
    Refused(W, io::Error),
}

impl<L, W> InFlight<L, W> {
    pub(crate) fn new() -> InFlight<L, W> {
        InFlight { buckets: BTreeMap::new() }
    }

    /// Whether nobody wants anything.
    #[cfg(test)]
    #[cfg(feature = "shuttle")]
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Somebody wants a blob. `try_lock` takes the bucket's file lock where nobody else has it.
    pub(crate) fn enter(
        &mut self,
        blob: BlobId,
        waiter: W,
        try_lock: impl FnOnce() -> io::Result<Option<L>>,
    ) -> Admission<W> {
        let Some(bucket) = self.buckets.get_mut(&blob.bucket()) else {
            let lock = match try_lock() {
                Ok(lock) => lock,
                Err(error) => return Admission::Refused(waiter, error),
            };
            let (queue, entered) = match lock {
                Some(_) => (VecDeque::new(), Admission::InCharge(waiter)),
                None => (VecDeque::from([waiter]), Admission::WaitsForLock),
            };
            self.buckets.insert(blob.bucket(), Bucket { lock, blobs: BTreeMap::from([(blob, queue)]) });
            return entered;
        };
        match bucket.blobs.get_mut(&blob) {
            None if bucket.lock.is_some() => {
                bucket.blobs.insert(blob, VecDeque::new());
                return Admission::InCharge(waiter);
            }
            None => _ = bucket.blobs.insert(blob, VecDeque::from([waiter])),
            Some(queue) => queue.push_back(waiter),
        }
        Admission::Waits
    }

    /// The file lock has come: the first of each queue is in charge now.
    pub(crate) fn locked(&mut self, bucket: u64, lock: L) -> Vec<(BlobId, W)> {
        let Some(entry) = self.buckets.get_mut(&bucket) else { return Vec::new() };
        entry.lock = Some(lock);
        let firsts = entry.blobs.iter_mut();
        firsts.filter_map(|(blob, queue)| queue.pop_front().map(|first| (*blob, first))).collect()
    }

    /// The file lock will not come: everybody leaves.
    pub(crate) fn lock_failed(&mut self, bucket: u64) -> Vec<(BlobId, W)> {
        let blobs = self.buckets.remove(&bucket).map(|entry| entry.blobs).unwrap_or_default();
        blobs
            .into_iter()
            .flat_map(|(blob, queue)| queue.into_iter().map(move |waiter| (blob, waiter)))
            .collect()
    }

    /// Who is in charge of the blob leaves, as its file is there. Everybody who waits for it leaves, too.
    pub(crate) fn settle(&mut self, blob: BlobId) -> VecDeque<W> {
        let Some(bucket) = self.buckets.get_mut(&blob.bucket()) else { return VecDeque::new() };
        let queue = bucket.blobs.remove(&blob).unwrap_or_default();
        if bucket.blobs.is_empty() {
            self.buckets.remove(&blob.bucket());
        }
        queue
    }

    /// Of those who wait for a blob, those leave who `can` be answered before its file is there. Who is in charge stays.
    pub(crate) fn leave(&mut self, blob: BlobId, can: impl Fn(&W) -> bool) -> VecDeque<W> {
        let waiting = self.buckets.get_mut(&blob.bucket()).and_then(|bucket| bucket.blobs.get_mut(&blob));
        let Some(waiting) = waiting else { return VecDeque::new() };
        let (leave, stay): (VecDeque<W>, VecDeque<W>) = std::mem::take(waiting).into_iter().partition(can);
        *waiting = stay;
        leave
    }

    /// Who is in charge of the blob leaves without a file. The next one is in charge now.
    pub(crate) fn give_up(&mut self, blob: BlobId) -> Option<W> {
        let next = self.buckets.get_mut(&blob.bucket())?.blobs.get_mut(&blob)?.pop_front();
        if next.is_none() {
            self.settle(blob);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blobferry_protocol::{Oid, Tid};
    use std::io::ErrorKind;
    use std::rc::Rc;

    /// Blobs of bucket 3, but for the last one.
    fn blob(n: u64) -> BlobId {
        BlobId { oid: Oid(3), tid: Tid(n) }
    }

    fn in_charge(entered: Admission<u32>) -> u32 {
        match entered {
            Admission::InCharge(waiter) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_is_in_charge_the_others_wait_and_all_leave_together() {
        let lock = Rc::new(());
        let mut registry = InFlight::new();
        assert_eq!(in_charge(registry.enter(blob(1), 1, || Ok(Some(lock.clone())))), 1);
        for waiter in 2..5 {
            assert!(matches!(registry.enter(blob(1), waiter, || unreachable!()), Admission::Waits));
        }
        assert_eq!(Rc::strong_count(&lock), 2);
        assert_eq!(registry.settle(blob(1)), [2, 3, 4]);
        assert_eq!(Rc::strong_count(&lock), 1, "the lock is released");
    }

    #[test]
    fn blobs_of_one_bucket_share_the_lock_until_the_last_one() {
        let lock = Rc::new(());
        let mut registry = InFlight::new();
        in_charge(registry.enter(blob(1), 1, || Ok(Some(lock.clone()))));
        in_charge(registry.enter(blob(2), 2, || unreachable!()));
        assert!(registry.settle(blob(1)).is_empty());
        assert_eq!(Rc::strong_count(&lock), 2);
        assert_eq!(registry.give_up(blob(2)), None);
        assert_eq!(Rc::strong_count(&lock), 1);
    }

    #[test]
    fn who_gives_up_is_followed_in_the_order_of_coming() {
        let mut registry = InFlight::new();
        in_charge(registry.enter(blob(1), 1, || Ok(Some(()))));
        for waiter in 2..4 {
            registry.enter(blob(1), waiter, || unreachable!());
        }
        assert_eq!(registry.give_up(blob(1)), Some(2));
        assert_eq!(registry.give_up(blob(1)), Some(3));
        assert_eq!(registry.give_up(blob(1)), None);
        assert!(registry.buckets.is_empty());
    }

    #[test]
    fn while_the_lock_is_held_elsewhere_one_helper_is_asked_for_and_then_the_firsts_are_in_charge() {
        let mut registry = InFlight::new();
        assert!(matches!(registry.enter(blob(1), 1, || Ok(None)), Admission::WaitsForLock));
        assert!(matches!(registry.enter(blob(2), 2, || unreachable!()), Admission::Waits));
        assert!(matches!(registry.enter(blob(1), 3, || unreachable!()), Admission::Waits));
        assert_eq!(registry.locked(3, ()), [(blob(1), 1), (blob(2), 2)]);
        assert_eq!(registry.give_up(blob(1)), Some(3));
        assert_eq!(registry.settle(blob(2)), []);
        assert_eq!(registry.settle(blob(1)), []);
        assert!(registry.buckets.is_empty());
    }

    #[test]
    fn who_can_be_answered_leaves_early_and_the_others_wait_on() {
        let mut registry = InFlight::new();
        in_charge(registry.enter(blob(1), 1, || Ok(Some(()))));
        for waiter in 2..7 {
            registry.enter(blob(1), waiter, || unreachable!());
        }
        assert_eq!(registry.leave(blob(1), |waiter| waiter % 2 == 0), [2, 4, 6]);
        assert!(registry.leave(blob(2), |_| true).is_empty());
        assert!(
            matches!(registry.enter(blob(1), 7, || unreachable!()), Admission::Waits),
            "one is in charge"
        );
        assert_eq!(registry.settle(blob(1)), [3, 5, 7]);
    }

    #[test]
    fn a_lock_that_fails_lets_everybody_leave() {
        let mut registry: InFlight<(), u32> = InFlight::new();
        let refused = registry.enter(blob(1), 1, || Err(ErrorKind::Unsupported.into()));
        assert!(matches!(refused, Admission::Refused(1, _)));
        registry.enter(blob(1), 1, || Ok(None));
        registry.enter(blob(1), 2, || Ok(None));
        assert_eq!(registry.lock_failed(3), [(blob(1), 1), (blob(1), 2)]);
        assert!(registry.buckets.is_empty());
    }
}
