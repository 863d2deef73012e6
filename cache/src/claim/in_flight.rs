//! Which claim leads which blob in this process, and which claims wait: the rules, without files or
//! threads.
//!
//! A bucket is in the table as long as a claim of one of its blobs is in flight. It is in one of
//! two states:
//!
//! * *wanted*: another process holds the bucket's file lock, and one helper thread waits for it.
//!   All claims wait.
//! * *locked*: this process holds the file lock. Exactly one claim leads each blob. The other
//!   claims of that blob wait in the order in which they came.
//!
//! When the last leader leaves, the bucket is removed from the table, which releases the file lock.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use blobferry_protocol::BlobId;

/// The buckets with claims in flight. `L` is the file lock, `W` is a claim.
#[derive(Debug)]
pub(crate) struct InFlight<L, W> {
    buckets: BTreeMap<u64, Bucket<L, W>>,
}

#[derive(Debug)]
struct Bucket<L, W> {
    /// `None` while another process holds the lock.
    lock: Option<L>,
    /// The blobs with claims in flight, and the claims that wait. While the lock is held, each blob
    /// has a leader, which is not in its queue.
    blobs: BTreeMap<BlobId, VecDeque<W>>,
}

/// What happened to a claim that entered.
#[derive(Debug)]
pub(crate) enum Admission<W> {
    /// It leads the blob.
    Leader(W),
    /// It waits.
    Waiting,
    /// It waits, and the caller must start a thread that waits for the bucket's file lock.
    WaitingForLock,
    /// The file lock failed. The claim has not entered.
    Refused(W, io::Error),
}

impl<L, W> InFlight<L, W> {
    pub(crate) fn new() -> InFlight<L, W> {
        InFlight { buckets: BTreeMap::new() }
    }

    /// Returns whether no claim is in flight.
    #[cfg(test)]
    #[cfg(feature = "shuttle")]
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Enters a claim. `try_lock` takes the bucket's file lock if no other process has it.
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
                Some(_) => (VecDeque::new(), Admission::Leader(waiter)),
                None => (VecDeque::from([waiter]), Admission::WaitingForLock),
            };
            self.buckets.insert(blob.bucket(), Bucket { lock, blobs: BTreeMap::from([(blob, queue)]) });
            return entered;
        };
        match bucket.blobs.get_mut(&blob) {
            None if bucket.lock.is_some() => {
                bucket.blobs.insert(blob, VecDeque::new());
                return Admission::Leader(waiter);
            }
            None => _ = bucket.blobs.insert(blob, VecDeque::from([waiter])),
            Some(queue) => queue.push_back(waiter),
        }
        Admission::Waiting
    }

    /// Enters a leader, if the claim need not wait. Returns `false`, and enters nothing, if it
    /// would have to.
    pub(crate) fn try_enter(
        &mut self,
        blob: BlobId,
        try_lock: impl FnOnce() -> io::Result<Option<L>>,
    ) -> io::Result<bool> {
        match self.buckets.get_mut(&blob.bucket()) {
            Some(bucket) if bucket.lock.is_none() || bucket.blobs.contains_key(&blob) => Ok(false),
            Some(bucket) => {
                bucket.blobs.insert(blob, VecDeque::new());
                Ok(true)
            }
            None => {
                let Some(lock) = try_lock()? else { return Ok(false) };
                let blobs = BTreeMap::from([(blob, VecDeque::new())]);
                self.buckets.insert(blob.bucket(), Bucket { lock: Some(lock), blobs });
                Ok(true)
            }
        }
    }

    /// Gives the bucket its file lock. Returns the first claim of each blob, which leads it now.
    pub(crate) fn locked(&mut self, bucket: u64, lock: L) -> Vec<(BlobId, W)> {
        let Some(entry) = self.buckets.get_mut(&bucket) else { return Vec::new() };
        entry.lock = Some(lock);
        let firsts = entry.blobs.iter_mut();
        firsts.filter_map(|(blob, queue)| queue.pop_front().map(|first| (*blob, first))).collect()
    }

    /// Removes a bucket whose file lock failed. Returns all of its claims.
    pub(crate) fn lock_failed(&mut self, bucket: u64) -> Vec<(BlobId, W)> {
        let blobs = self.buckets.remove(&bucket).map(|entry| entry.blobs).unwrap_or_default();
        blobs
            .into_iter()
            .flat_map(|(blob, queue)| queue.into_iter().map(move |waiter| (blob, waiter)))
            .collect()
    }

    /// Removes a blob, whose file is in the cache, and its leader. Returns the claims that waited
    /// for it.
    pub(crate) fn complete(&mut self, blob: BlobId) -> VecDeque<W> {
        let Some(bucket) = self.buckets.get_mut(&blob.bucket()) else { return VecDeque::new() };
        let queue = bucket.blobs.remove(&blob).unwrap_or_default();
        if bucket.blobs.is_empty() {
            self.buckets.remove(&blob.bucket());
        }
        queue
    }

    /// Removes and returns the claims that wait for a blob and `can` be answered before its file is
    /// written. The leader stays.
    pub(crate) fn leave(&mut self, blob: BlobId, can: impl Fn(&W) -> bool) -> VecDeque<W> {
        let waiting = self.buckets.get_mut(&blob.bucket()).and_then(|bucket| bucket.blobs.get_mut(&blob));
        let Some(waiting) = waiting else { return VecDeque::new() };
        let (leave, stay): (VecDeque<W>, VecDeque<W>) = std::mem::take(waiting).into_iter().partition(can);
        *waiting = stay;
        leave
    }

    /// Removes the leader, which has no file for the blob. Returns the next claim, which leads now.
    pub(crate) fn hand_over(&mut self, blob: BlobId) -> Option<W> {
        let next = self.buckets.get_mut(&blob.bucket())?.blobs.get_mut(&blob)?.pop_front();
        if next.is_none() {
            self.complete(blob);
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

    fn leader(entered: Admission<u32>) -> u32 {
        match entered {
            Admission::Leader(waiter) => waiter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_claim_leads_the_others_wait_for_it() {
        let lock = Rc::new(());
        let mut claims = InFlight::new();
        assert_eq!(leader(claims.enter(blob(1), 1, || Ok(Some(lock.clone())))), 1);
        for waiter in 2..5 {
            assert!(matches!(claims.enter(blob(1), waiter, || unreachable!()), Admission::Waiting));
        }
        assert_eq!(Rc::strong_count(&lock), 2);
        assert_eq!(claims.complete(blob(1)), [2, 3, 4]);
        assert_eq!(Rc::strong_count(&lock), 1, "the lock is released");
    }

    #[test]
    fn blobs_of_one_bucket_share_its_lock() {
        let lock = Rc::new(());
        let mut claims = InFlight::new();
        leader(claims.enter(blob(1), 1, || Ok(Some(lock.clone()))));
        leader(claims.enter(blob(2), 2, || unreachable!()));
        assert!(claims.complete(blob(1)).is_empty());
        assert_eq!(Rc::strong_count(&lock), 2);
        assert_eq!(claims.hand_over(blob(2)), None);
        assert_eq!(Rc::strong_count(&lock), 1);
    }

    #[test]
    fn leaders_follow_in_the_order_of_their_claims() {
        let mut claims = InFlight::new();
        leader(claims.enter(blob(1), 1, || Ok(Some(()))));
        for waiter in 2..4 {
            claims.enter(blob(1), waiter, || unreachable!());
        }
        assert_eq!(claims.hand_over(blob(1)), Some(2));
        assert_eq!(claims.hand_over(blob(1)), Some(3));
        assert_eq!(claims.hand_over(blob(1)), None);
        assert!(claims.buckets.is_empty());
    }

    #[test]
    fn one_helper_waits_for_a_lock_then_first_claims_lead() {
        let mut claims = InFlight::new();
        assert!(matches!(claims.enter(blob(1), 1, || Ok(None)), Admission::WaitingForLock));
        assert!(matches!(claims.enter(blob(2), 2, || unreachable!()), Admission::Waiting));
        assert!(matches!(claims.enter(blob(1), 3, || unreachable!()), Admission::Waiting));
        assert_eq!(claims.locked(3, ()), [(blob(1), 1), (blob(2), 2)]);
        assert_eq!(claims.hand_over(blob(1)), Some(3));
        assert_eq!(claims.complete(blob(2)), []);
        assert_eq!(claims.complete(blob(1)), []);
        assert!(claims.buckets.is_empty());
    }

    #[test]
    fn claims_that_can_be_answered_early_leave() {
        let mut claims = InFlight::new();
        leader(claims.enter(blob(1), 1, || Ok(Some(()))));
        for waiter in 2..7 {
            claims.enter(blob(1), waiter, || unreachable!());
        }
        assert_eq!(claims.leave(blob(1), |waiter| waiter % 2 == 0), [2, 4, 6]);
        assert!(claims.leave(blob(2), |_| true).is_empty());
        assert!(matches!(claims.enter(blob(1), 7, || unreachable!()), Admission::Waiting), "one leads");
        assert_eq!(claims.complete(blob(1)), [3, 5, 7]);
    }

    #[test]
    fn a_failed_lock_releases_all_claims() {
        let mut claims: InFlight<(), u32> = InFlight::new();
        let refused = claims.enter(blob(1), 1, || Err(ErrorKind::Unsupported.into()));
        assert!(matches!(refused, Admission::Refused(1, _)));
        claims.enter(blob(1), 1, || Ok(None));
        claims.enter(blob(1), 2, || Ok(None));
        assert_eq!(claims.lock_failed(3), [(blob(1), 1), (blob(1), 2)]);
        assert!(claims.buckets.is_empty());
    }

    #[test]
    fn try_enter_leads_or_enters_nothing() {
        let mut claims: InFlight<(), u32> = InFlight::new();
        assert!(!claims.try_enter(blob(1), || Ok(None)).unwrap());
        assert!(claims.try_enter(blob(1), || Err(ErrorKind::Unsupported.into())).is_err());
        assert!(claims.buckets.is_empty());
        assert!(claims.try_enter(blob(1), || Ok(Some(()))).unwrap());
        assert!(!claims.try_enter(blob(1), || unreachable!()).unwrap(), "a claim leads it");
        assert!(claims.try_enter(blob(2), || unreachable!()).unwrap(), "the bucket is locked");
        assert_eq!((claims.hand_over(blob(1)), claims.hand_over(blob(2))), (None, None));
        claims.enter(blob(1), 1, || Ok(None));
        assert!(!claims.try_enter(blob(2), || unreachable!()).unwrap(), "another process has the lock");
    }
}
