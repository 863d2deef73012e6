//! The calls that are answered by one message, each with the type of its answer.

use std::ops::Range;

use blobferry_protocol::{
    HistoryEntry, Oid, Outcome, Packed, Reply, Request, RequestError, Revision, Tid, TxnId,
};

use crate::client::error::{CallError, Completion};
use crate::client::session::Session;
use crate::client::state::Sent;

/// So many answers are few: who awaits more has enough to do.
const FEW: usize = 4;

impl Session {
    /// Asks, and takes the answer out of the reply. The machine lets no reply of another kind through.
    fn typed<T: 'static>(&self, request: Request, done: Completion<T>, answer: fn(Reply) -> Option<T>) {
        let other = || CallError::Disconnected { reason: "the answer was of another kind".into() };
        self.call(
            request,
            Box::new(move |reply| done(reply.and_then(|reply| answer(reply).ok_or_else(other)))),
        );
    }

    /// Will all answers that are outstanding soon be there: are there some, but few, and is none of them a file, or of something
    /// that waits for a disk? Then it may be worth while to look for them for a moment before one sleeps.
    #[must_use]
    pub fn expects_small_answer(&self) -> bool {
        let inner = self.lock();
        let soon = |waiter: &Sent| match waiter {
            Sent::Call { request, .. } => is_read(request),
            Sent::Attach(_) | Sent::Upload { .. } => false,
        };
        (1..=FEW).contains(&inner.connection.requests_in_flight())
            && inner.state.inlets.is_empty()
            && inner.state.waiters.values().all(soon)
    }

    /// The current revision of an object, or [`RequestError::NoSuchObject`].
    pub fn load(&self, oid: Oid, done: Completion<Revision>) {
        self.typed(Request::Load { oid }, done, revision);
    }

    /// One exact revision of an object, or [`RequestError::NoSuchRevision`].
    pub fn load_serial(&self, oid: Oid, tid: Tid, done: Completion<Revision>) {
        self.typed(Request::LoadSerial { oid, tid }, done, revision);
    }

    /// The last revision of an object before a transaction; `None` if it is younger than that.
    pub fn load_before(&self, oid: Oid, before: Tid, done: Completion<Option<Revision>>) {
        self.typed(Request::LoadBefore { oid, before }, done, |reply| match reply {
            Reply::RevisionBefore(revision) => Some(revision),
            _ => None,
        });
    }

    /// The revisions of an object, newest first, at most `limit` (the server may give fewer).
    pub fn history(&self, oid: Oid, limit: u32, done: Completion<Vec<HistoryEntry>>) {
        self.typed(Request::History { oid, limit }, done, |reply| match reply {
            Reply::History(history) => Some(history),
            _ => None,
        });
    }

    /// The server's counters, by name.
    pub fn status(&self, done: Completion<Vec<(String, u64)>>) {
        self.typed(Request::Status, done, |reply| match reply {
            Reply::Status(status) => Some(status),
            _ => None,
        });
    }

    /// Forgets the revisions that were replaced before a transaction.
    pub fn pack(&self, before: Tid, done: Completion<Packed>) {
        self.typed(Request::Pack { before }, done, |reply| match reply {
            Reply::Packed(packed) => Some(packed),
            _ => None,
        });
    }

    /// What has become of a transaction; if it is not committed, it never will be.
    pub fn outcome(&self, txn: TxnId, done: Completion<Outcome>) {
        self.typed(Request::Outcome { txn }, done, |reply| match reply {
            Reply::Outcome(outcome) => Some(outcome),
            _ => None,
        });
    }

    /// Exactly `count` unused oids.
    pub fn new_oids(&self, count: u32, done: Completion<Vec<Oid>>) {
        self.more_oids(Vec::new(), count, done);
    }

    /// Asks until there are enough: the server gives as many at once as it likes.
    fn more_oids(&self, mut oids: Vec<Oid>, missing: u32, done: Completion<Vec<Oid>>) {
        if missing == 0 {
            return done(Ok(oids));
        }
        let session = self.clone();
        let then: Completion<Range<u64>> = Box::new(move |given| match given {
            Ok(given) if given.is_empty() => {
                done(Err(RequestError::Failed { detail: "it has no oids left".into() }.into()));
            }
            Ok(given) => {
                let given = given.start..given.end.min(given.start.saturating_add(missing.into()));
                // At most as many as are missing, so it fits.
                let taken = (given.end - given.start) as u32;
                oids.extend(given.map(Oid));
                session.more_oids(oids, missing - taken, done);
            }
            Err(error) => done(Err(error)),
        });
        self.typed(Request::NewOids { count: missing }, then, |reply| match reply {
            Reply::Oids { first, count } => Some(first.0..first.0.saturating_add(count.into())),
            _ => None,
        });
    }
}

/// Is it a question that a server answers from its memory, or as good as that?
fn is_read(request: &Request) -> bool {
    matches!(
        request,
        Request::Load { .. }
            | Request::LoadBefore { .. }
            | Request::LoadSerial { .. }
            | Request::History { .. }
            | Request::SendBlob { .. }
            | Request::Status
    )
}

fn revision(reply: Reply) -> Option<Revision> {
    match reply {
        Reply::Revision(revision) => Some(revision),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::{BlobId, Config, TxnMeta};

    use super::*;
    use crate::client::session::tests::welcomed;

    #[test]
    fn answers_come_soon_where_a_few_are_outstanding_and_no_disk_is_waited_for() {
        let (few, _endpoint, _dir) = welcomed(Config::default());
        assert!(!few.expects_small_answer(), "there are none");
        for oid in 1..=FEW as u64 + 1 {
            few.load_bytes(BlobId { oid: Oid(oid), tid: Tid(1) }, Box::new(|_| {}));
            assert_eq!(few.expects_small_answer(), oid <= FEW as u64);
        }
        let (commit, _endpoint, _dir) = welcomed(Config::default());
        commit.status(Box::new(|_| {}));
        assert!(commit.expects_small_answer());
        let mut transaction = commit.begin(TxnMeta::default()).unwrap();
        transaction.commit(Box::new(|_| {}));
        assert!(!commit.expects_small_answer());
        let (file, _endpoint, _dir) = welcomed(Config::default());
        file.load_blob(BlobId { oid: Oid(1), tid: Tid(1) }, None, Box::new(|_| {}));
        assert!(!file.expects_small_answer());
    }
}
