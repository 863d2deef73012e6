//! The traits for the session's client: callbacks turned into futures, without a runtime.

use std::path::Path;
use std::sync::Arc;

use blobferry_protocol::{BlobInfo, Oid, RequestError, Revision, Tid};
use blobferry_session::client::{BlobSource, CallError, Completion, Session, Transaction, VoteError};
use blobferry_session::io::Progress;
use bytes::Bytes;
use futures_channel::oneshot;

use crate::objects::{Attempt, Objects, Writes};

/// Makes a call that takes a callback, and waits for its result.
///
/// The future runs on any executor. Dropping it does not cancel the call.
///
/// # Errors
/// The call's own; [`CallError::Unanswered`] if the callback is dropped without being called.
pub async fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    call: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    let answer = begin(call);
    answer.await.unwrap_or_else(|_| Err(CallError::Unanswered.into()))
}

/// Makes the call, and drops what the future need not hold while it waits.
fn begin<T: Send + 'static, E: Send + 'static>(
    call: impl FnOnce(Completion<T, E>),
) -> oneshot::Receiver<Result<T, E>> {
    let (done, answer) = oneshot::channel();
    call(Box::new(move |result| {
        // The receiver is gone if the future was dropped.
        let _ = done.send(result);
    }));
    answer
}

/// Stores an object's record with a blob from memory, made from revision `base` ([`Tid::ZERO`] for
/// a new object).
///
/// # Errors
/// The call's.
pub async fn store_bytes(
    transaction: &Transaction,
    oid: Oid,
    base: Tid,
    data: Vec<u8>,
    bytes: impl Into<Bytes>,
) -> Result<BlobInfo, CallError> {
    let source = BlobSource::bytes(bytes);
    wait(|done| transaction.store_blob(oid, base, data, source, None, done)).await
}

impl Objects for Session {
    type Error = CallError;

    fn last_tid(&self) -> Tid {
        Session::last_tid(self)
    }

    async fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, CallError> {
        match wait(|done| Session::load_before(self, oid, before, done)).await {
            Err(CallError::Refused(RequestError::NoSuchObject { .. })) => Ok(None),
            loaded => loaded,
        }
    }

    async fn new_oids(&self, count: u32) -> Result<Vec<Oid>, CallError> {
        wait(|done| Session::new_oids(self, count, done)).await
    }
}

impl Writes for Transaction {
    type Error = CallError;

    async fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), CallError> {
        wait(|done| Transaction::store(self, oid, base, data, done)).await
    }

    /// Sends the file from its place. It is not cached, and must not change while it is sent.
    async fn store_file(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<BlobInfo, CallError> {
        let source = BlobSource::streamed(source);
        let progress = Arc::new(move |at: Progress| progress(at.done));
        wait(|done| self.store_blob(oid, base, data, source, Some(progress), done)).await
    }

    async fn delete(&self, oid: Oid, base: Tid) -> Result<(), CallError> {
        wait(|done| Transaction::delete(self, oid, base, done)).await
    }

    async fn commit(&mut self) -> Result<Attempt, CallError> {
        match wait(|done| Transaction::commit(self, done)).await {
            Ok(tid) => Ok(Attempt::Committed(tid)),
            Err(VoteError::Conflict(conflicts)) => Ok(Attempt::Conflicts(conflicts)),
            Err(VoteError::Call(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Edit, NameAt, NamePath, View, Watch, commit};

    fn is_send<T: Send>(_: &T) {}

    /// Checked by the compiler: tasks of any runtime can read, watch and commit.
    #[expect(dead_code, reason = "it only has to compile")]
    fn futures_are_send(session: &Session, transaction: &mut Transaction, name: &NameAt, path: NamePath) {
        let view = View::now(session);
        is_send(&view.get_file(name));
        is_send(&view.list(Oid::ROOT));
        is_send(&view.files_below(&path, Oid::ROOT));
        is_send(&Watch::new(session, path));
        is_send(&commit(View::now(session), transaction, &Edit::default()));
    }

    #[test]
    fn dropped_callbacks_are_unanswered_calls() {
        let mut call = std::pin::pin!(wait(|done: Completion<(), CallError>| drop(done)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let answer = call.as_mut().poll(&mut context);
        assert!(matches!(answer, std::task::Poll::Ready(Err(CallError::Unanswered))));
    }
}
