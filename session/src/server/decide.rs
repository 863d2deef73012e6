//! Votes, finishes and commits. The store answers later, on a thread of its own choice.

use std::sync::Arc;

use blobferry_protocol::{Reply, RequestError, RequestId, TxnId};
use blobferry_store::{Store, Vote};

use crate::server::detached::TransactionLease;
use crate::server::mailbox::Mailbox;
use crate::server::message::Message;

/// Lets the store vote.
pub(super) fn vote(store: &Arc<dyn Store>, mailbox: Arc<Mailbox<Message>>, id: RequestId, txn: TxnId) {
    voted(store, txn, move |_, vote| mailbox.reply(id, vote.map(reply)));
}

/// Commits what was voted for.
pub(super) fn finish(store: &Arc<dyn Store>, mailbox: Arc<Mailbox<Message>>, id: RequestId, txn: TxnId) {
    store.finish(txn, Box::new(move |tid| mailbox.reply(id, tid.map(|tid| Reply::Finished { tid }))));
}

/// Votes and finishes without a round trip in between. With conflicts the transaction stays open, and may be attached
/// to another connection.
pub(super) fn commit(
    store: &Arc<dyn Store>,
    mailbox: Arc<Mailbox<Message>>,
    lease: Option<Arc<TransactionLease>>,
    id: RequestId,
    txn: TxnId,
) {
    voted(store, txn, move |store, vote| {
        if !matches!(vote, Ok(Vote::Conflicts(_))) {
            lease.iter().for_each(|lease| lease.end());
        }
        match vote {
            Ok(Vote::Ready) => finish(store, mailbox, id, txn),
            vote => mailbox.reply(id, vote.map(reply)),
        }
    });
}

/// Lets the store vote. A failed vote ends the transaction, which its client expects.
fn voted(
    store: &Arc<dyn Store>,
    txn: TxnId,
    then: impl FnOnce(&Arc<dyn Store>, Result<Vote, RequestError>) + Send + 'static,
) {
    let later = store.clone();
    let done = move |vote: Result<Vote, RequestError>| {
        if vote.is_err() {
            later.abort(txn);
        }
        then(&later, vote);
    };
    store.vote(txn, Box::new(done));
}

fn reply(vote: Vote) -> Reply {
    match vote {
        Vote::Ready => Reply::Voted,
        Vote::Conflicts(conflicts) => Reply::Conflicts(conflicts),
    }
}
