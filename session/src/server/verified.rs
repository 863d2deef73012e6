//! Which blobs need not be hashed when they are sent, because this server has just done so.
//!
//! A blob that is sent as a whole is hashed on the way, so that damage is found before its last byte and named as what
//! it is. Whoever receives it hashes it, too, and believes nothing else; so to do that again for each of a hundred
//! machines that want the same blob within the hour finds nothing more, and is half of the work of sending it. What was
//! hashed on its way in counts as well.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use blobferry_platform::os;
use blobferry_platform::os::FileStamp;
use blobferry_platform::sync::Mutex;
use blobferry_protocol::{Digest, Oid};

/// How long a proof holds.
const HOLDS: Duration = Duration::from_secs(60 * 60);
/// So many are remembered, the latest.
const MOST: usize = 1024;

/// A file with the bytes of a blob, as it was when they were hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VerifiedFile {
    pub(super) oid: Oid,
    pub(super) digest: Digest,
    pub(super) stamp: FileStamp,
}

/// The proofs of a server, all its connections'.
#[derive(Debug, Default)]
pub(super) struct RecentlyVerified(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// When each was made, since 1970.
    made: BTreeMap<VerifiedFile, Duration>,
    order: VecDeque<VerifiedFile>,
}

impl RecentlyVerified {
    /// The bytes of a file were hashed just now, and were the blob's.
    pub(super) fn add(&self, proof: VerifiedFile) {
        let mut inner = self.0.lock();
        if inner.made.insert(proof, os::unix_time()).is_none() {
            inner.order.push_back(proof);
        }
        if inner.order.len() > MOST
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.made.remove(&oldest);
        }
    }

    /// Is that known to be so, and for not too long?
    pub(super) fn hold(&self, proof: VerifiedFile) -> bool {
        let inner = self.0.lock();
        // A clock that was put back says nothing.
        let age = inner.made.get(&proof).and_then(|made| os::unix_time().checked_sub(*made));
        age.is_some_and(|age| age < HOLDS)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    fn proof(oid: u64, file: &File) -> VerifiedFile {
        VerifiedFile { oid: Oid(oid), digest: Digest([7; 32]), stamp: FileStamp::of(file).unwrap() }
    }

    #[test]
    fn a_proof_holds_for_this_blob_and_this_file_as_it_was() {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        let (proofs, before) = (RecentlyVerified::default(), proof(1, named.as_file()));
        assert!(!proofs.hold(before));
        proofs.add(before);
        assert!(proofs.hold(before) && !proofs.hold(proof(2, named.as_file())));
        named.write_all(b"damage").unwrap();
        assert!(!proofs.hold(proof(1, named.as_file())));
    }

    #[test]
    fn a_proof_is_too_old_after_an_hour_and_where_the_clock_was_put_back() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let (proofs, proof) = (RecentlyVerified::default(), proof(1, named.as_file()));
        for (made, holds) in [(HOLDS, false), (HOLDS - Duration::from_secs(60), true)] {
            proofs.add(proof);
            *proofs.0.lock().made.get_mut(&proof).unwrap() -= made;
            assert_eq!(proofs.hold(proof), holds);
        }
        proofs.add(proof);
        *proofs.0.lock().made.get_mut(&proof).unwrap() += HOLDS;
        assert!(!proofs.hold(proof));
    }

    #[test]
    fn only_the_latest_are_remembered() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let proofs = RecentlyVerified::default();
        for oid in 0..=MOST as u64 {
            proofs.add(proof(oid, named.as_file()));
        }
        assert!(!proofs.hold(proof(0, named.as_file())));
        assert!(proofs.hold(proof(1, named.as_file())) && proofs.hold(proof(MOST as u64, named.as_file())));
        assert_eq!(proofs.0.lock().made.len(), MOST);
    }
}
