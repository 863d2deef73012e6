//! Votes and finishes: the store answers when their turn has come, on whatever thread it likes.

use std::sync::Arc;

use blobferry_protocol::{Reply, RequestError, RequestId, TxnId};

use crate::server::detached::TransactionLease;
use crate::server::mailbox::Mailbox;
use blobferry_store::{Store, Vote};

pub(super) fn vote(store: &Arc<dyn Store>, mailbox: Arc<Mailbox>, id: RequestId, txn: TxnId) {
    voted(store, txn, move |_, vote| mailbox.reply(id, vote.map(told)));
}

pub(super) fn finish(store: &Arc<dyn Store>, mailbox: Arc<Mailbox>, id: RequestId, txn: TxnId) {
    store.finish(txn, Box::new(move |tid| mailbox.reply(id, tid.map(|tid| Reply::Finished { tid }))));
}

/// Vote and finish, without asking the client in between. With conflicts it is open as before, and goes on on another
/// connection where this one is lost meanwhile.
pub(super) fn commit(
    store: &Arc<dyn Store>,
    mailbox: Arc<Mailbox>,
    hold: Option<Arc<TransactionLease>>,
    id: RequestId,
    txn: TxnId,
) {
    voted(store, txn, move |store, vote| {
        if !matches!(vote, Ok(Vote::Conflicts(_))) {
            hold.iter().for_each(|hold| hold.over());
        }
        match vote {
            Ok(Vote::Ready) => finish(store, mailbox, id, txn),
            vote => mailbox.reply(id, vote.map(told)),
        }
    });
}

/// Lets the store vote. A vote that fails ends the transaction: that is what its client will think, too.
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

fn told(vote: Vote) -> Reply {
    match vote {
        Vote::Ready => Reply::Voted,
        Vote::Conflicts(conflicts) => Reply::Conflicts(conflicts),
    }
}
