//! Calls that are answered by one message, each with the type of its answer.

use std::ops::Range;

use blobferry_protocol::{
    HistoryEntry, Oid, Outcome, Packed, Reply, Request, RequestError, Revision, Tid, TxnId,
};

use crate::client::error::{CallError, Completion};
use crate::client::queue::Sent;
use crate::client::shared::Session;

/// The most answers that count as few for [`Session::expects_small_answer`]. With more, the thread that drives the
/// connection has other work than to wait.
const FEW_ANSWERS: usize = 4;

impl Session {
    /// Sends a request, and takes the answer out of the reply. The machine lets no reply of another kind through.
    fn typed<T: 'static>(
        &self,
        request: Request,
        done: impl FnOnce(Result<T, CallError>) + Send + 'static,
        answer: fn(Reply) -> Option<T>,
    ) {
        let other = || CallError::Disconnected { reason: "the answer was of another kind".into() };
        self.call(request, move |reply| done(reply.and_then(|reply| answer(reply).ok_or_else(other))));
    }

    /// Returns whether all pending answers will soon be there: there are at most four, none is a file, and none waits for
    /// a disk. Then a thread may spin for a moment before it sleeps.
    #[must_use]
    pub fn expects_small_answer(&self) -> bool {
        let inner = self.lock();
        let is_soon = |sent: &Sent| match sent {
            Sent::Call { request, .. } => is_read(request),
            Sent::Attach(_) | Sent::Upload { .. } => false,
        };
        (1..=FEW_ANSWERS).contains(&inner.connection.requests_in_flight())
            && inner.state.incoming.is_empty()
            && inner.state.sent.values().all(is_soon)
    }

    /// Loads the current revision of an object. An unknown object fails with [`RequestError::NoSuchObject`].
    pub fn load(&self, oid: Oid, done: impl FnOnce(Result<Revision, CallError>) + Send + 'static) {
        self.typed(Request::Load { oid }, done, revision);
    }

    /// Loads exactly the revision that a transaction has made. An unknown one fails with
    /// [`RequestError::NoSuchRevision`].
    pub fn load_serial(
        &self,
        oid: Oid,
        tid: Tid,
        done: impl FnOnce(Result<Revision, CallError>) + Send + 'static,
    ) {
        self.typed(Request::LoadSerial { oid, tid }, done, revision);
    }

    /// Loads the newest revision of an object before a transaction, which is excluded. It is `None` if the object is
    /// younger than that.
    pub fn load_before(
        &self,
        oid: Oid,
        before: Tid,
        done: impl FnOnce(Result<Option<Revision>, CallError>) + Send + 'static,
    ) {
        self.typed(Request::LoadBefore { oid, before }, done, |reply| match reply {
            Reply::RevisionBefore(revision) => Some(revision),
            _ => None,
        });
    }

    /// Loads the revision of an object as of a transaction, which is included. It is `None` if the object is younger
    /// than that. Many objects loaded at one [`last_tid`](Self::last_tid) make one consistent view.
    pub fn load_at(
        &self,
        oid: Oid,
        tid: Tid,
        done: impl FnOnce(Result<Option<Revision>, CallError>) + Send + 'static,
    ) {
        self.load_before(oid, Tid(tid.0.saturating_add(1)), done);
    }

    /// Loads the revisions of an object, newest first, at most `limit`. The server may return fewer.
    pub fn history(
        &self,
        oid: Oid,
        limit: u32,
        done: impl FnOnce(Result<Vec<HistoryEntry>, CallError>) + Send + 'static,
    ) {
        self.typed(Request::History { oid, limit }, done, |reply| match reply {
            Reply::History(history) => Some(history),
            _ => None,
        });
    }

    /// Loads the server's counters, by name.
    pub fn status(&self, done: impl FnOnce(Result<Vec<(String, u64)>, CallError>) + Send + 'static) {
        self.typed(Request::Status, done, |reply| match reply {
            Reply::Status(status) => Some(status),
            _ => None,
        });
    }

    /// Deletes the revisions that were replaced before a transaction.
    pub fn pack(&self, before: Tid, done: impl FnOnce(Result<Packed, CallError>) + Send + 'static) {
        self.typed(Request::Pack { before }, done, |reply| match reply {
            Reply::Packed(packed) => Some(packed),
            _ => None,
        });
    }

    /// Returns the outcome of a transaction. If it is not committed, it never will be.
    pub fn outcome(&self, txn: TxnId, done: impl FnOnce(Result<Outcome, CallError>) + Send + 'static) {
        self.typed(Request::Outcome { txn }, done, |reply| match reply {
            Reply::Outcome(outcome) => Some(outcome),
            _ => None,
        });
    }

    /// Allocates exactly `count` unused oids.
    pub fn new_oids(&self, count: u32, done: impl FnOnce(Result<Vec<Oid>, CallError>) + Send + 'static) {
        self.more_oids(Vec::new(), count, Box::new(done));
    }

    /// Sends requests until there are enough oids: the server allocates fewer at once if it likes.
    fn more_oids(&self, mut oids: Vec<Oid>, missing: u32, done: Completion<Vec<Oid>>) {
        if missing == 0 {
            return done(Ok(oids));
        }
        let session = self.clone();
        let then = move |given: Result<Range<u64>, CallError>| match given {
            Ok(given) if given.is_empty() => {
                done(Err(RequestError::Failed { detail: "it has no oids left".into() }.into()));
            }
            Ok(given) => {
                let given = given.start..given.end.min(given.start.saturating_add(missing.into()));
                // Not more than `missing`, which is a `u32`.
                let taken = (given.end - given.start) as u32;
                oids.extend(given.map(Oid));
                session.more_oids(oids, missing - taken, done);
            }
            Err(error) => done(Err(error)),
        };
        self.typed(Request::NewOids { count: missing }, then, |reply| match reply {
            Reply::Oids { first, count } => Some(first.0..first.0.saturating_add(count.into())),
            _ => None,
        });
    }
}

/// Returns whether a server answers the request from its memory, as a rule.
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
    fn expects_small_answer_if_few_reads_are_pending() {
        let (few, _handler, _dir) = welcomed(Config::default());
        assert!(!few.expects_small_answer(), "there are none");
        for oid in 1..=FEW_ANSWERS as u64 + 1 {
            few.load_bytes(BlobId { oid: Oid(oid), tid: Tid(1) }, |_| {});
            assert_eq!(few.expects_small_answer(), oid <= FEW_ANSWERS as u64);
        }
        let (commit, _handler, _dir) = welcomed(Config::default());
        commit.status(|_| {});
        assert!(commit.expects_small_answer());
        let mut transaction = commit.begin(TxnMeta::default()).unwrap();
        transaction.commit(|_| {});
        assert!(!commit.expects_small_answer());
        let (file, _handler, _dir) = welcomed(Config::default());
        file.load_blob(BlobId { oid: Oid(1), tid: Tid(1) }, None, |_| {});
        assert!(!file.expects_small_answer());
    }
}
