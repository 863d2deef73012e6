//! What a client asks for: each request to where it is dealt with. What changes a transaction goes to that one's lane, and
//! what only looks to the other reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use blobferry_protocol::{Reply, Request, RequestError, RequestId, TxnId, server};

use crate::server::decide;
use crate::server::detached::{Part, TransactionLease};
use crate::server::handler::State;
use crate::server::upload::Upload;
use blobferry_store::Store;

/// Bytes of records that wait for their blobs. To stop reading would not help: the blobs have to be read.
const HELD_FOR_BLOBS: u64 = 64 << 20;

impl State {
    /// A transaction was begun here, or attached.
    pub(super) fn begun(&mut self, connection: &server::Connection, hold: Arc<TransactionLease>) {
        self.begun.insert(hold.txn(), hold);
        // A vote that fails leaves its lane, too.
        let most = 2 * self.service.config().connection.limits.transactions as usize;
        if self.begun.len().max(self.lanes.len()) > most {
            let open: BTreeSet<TxnId> = connection.transactions().map(|(txn, _)| txn).collect();
            self.lanes.retain(&open);
            self.begun.retain(|txn, hold| {
                let open = open.contains(txn);
                if !open {
                    hold.over();
                }
                open
            });
        }
    }

    /// A request that puts something into a transaction has arrived: what is kept of that, should the connection be
    /// lost. `None` where the transaction could not begin.
    fn arrived(&self, txn: TxnId, id: RequestId) -> Option<Arc<TransactionLease>> {
        let hold = self.begun.get(&txn)?.clone();
        hold.arrived(id);
        Some(hold)
    }

    /// What puts something into a transaction, when everything that was asked of it before is done.
    fn put(
        &self,
        txn: TxnId,
        id: RequestId,
        put: impl FnOnce(&dyn Store) -> Result<(), RequestError> + Send + 'static,
    ) -> impl FnOnce() + Send + 'static {
        let (store, mailbox, hold) =
            (self.service.store().clone(), self.mailbox.clone(), self.arrived(txn, id));
        move || {
            let put = put(&*store);
            if let (Ok(()), Some(hold)) = (&put, &hold) {
                hold.done(id);
            }
            mailbox.reply(id, put.map(|()| Reply::Done));
        }
    }

    /// Aborts a transaction, if it is here or on no connection, when everything that was asked of it before is done.
    pub(super) fn abort(&mut self, txn: TxnId, then: impl FnOnce() + Send + 'static) {
        let hold = self.begun.remove(&txn);
        hold.iter().for_each(|hold| hold.over());
        let service = self.service.clone();
        self.lanes.last(txn).run_slow(move || {
            match hold {
                Some(_) => service.store().abort(txn),
                None => service.keeper().abort(txn),
            }
            then();
        });
    }

    pub(super) fn request(&mut self, connection: &mut server::Connection, id: RequestId, request: Request) {
        let (store, mailbox) = (self.service.store().clone(), self.mailbox.clone());
        match request {
            Request::Begin { txn, meta } => {
                let begun = store.begin(txn, meta);
                if begun.is_ok() {
                    let hold = self.service.keeper().hold(txn, &self.mailbox);
                    self.begun(connection, hold);
                }
                let _ = connection.reply(id, begun.map(|()| Reply::Done));
            }
            Request::Attach { txn } => self.service.keeper().attach(txn, id, &self.mailbox),
            Request::Store { txn, oid, base, data } => {
                let bytes = data.len() as u64;
                self.held.insert(id, bytes);
                let put = self.put(txn, id, move |store| store.store(txn, oid, base, data));
                self.lanes.put(txn, bytes).run(&mut self.turn, put);
            }
            Request::Delete { txn, oid, base } => {
                let put = self.put(txn, id, move |store| store.delete(txn, oid, base));
                self.lanes.put(txn, 0).run(&mut self.turn, put);
            }
            Request::StoreShared { txn, oid, base, data, name, size, digest } => {
                let bytes = data.len() as u64;
                self.held.insert(id, bytes);
                let put = self
                    .put(txn, id, move |store| store.store_shared(txn, oid, base, data, &name, size, digest));
                self.lanes.put(txn, bytes).run_slow(put);
            }
            Request::StoreBlob { txn, oid, base, data } => {
                let actual = data.len() as u64 + self.held_for_blobs.values().sum::<u64>();
                if actual > HELD_FOR_BLOBS {
                    let what = "bytes of records that wait for their blobs".to_owned();
                    let _ = connection
                        .reply(id, Err(RequestError::Limit { what, limit: HELD_FOR_BLOBS, actual }));
                    return;
                }
                self.held_for_blobs.insert(id, data.len() as u64);
                self.lanes.upload(txn);
                let (service, hold) = (self.service.clone(), self.arrived(txn, id));
                let part = hold.as_ref().and_then(|hold| hold.take_part(oid));
                let part = part.map(|part| Part { request: id, ..part });
                let upload = Upload { service, mailbox, hold, id, txn, oid, base, data, part };
                self.inlets.expect(id.into(), Box::new(upload));
            }
            Request::Vote { txn } => {
                let place = self.lanes.place(txn);
                place.run(&mut self.turn, move || decide::vote(&store, mailbox, id, txn));
            }
            Request::Finish { txn } => {
                self.begun.get(&txn).into_iter().for_each(|hold| hold.over());
                let place = self.lanes.last(txn);
                place.run(&mut self.turn, move || decide::finish(&store, mailbox, id, txn));
            }
            Request::Commit { txn } => {
                let hold = self.begun.get(&txn).cloned();
                let place = self.lanes.last(txn);
                place.run(&mut self.turn, move || decide::commit(&store, mailbox, hold, id, txn));
            }
            Request::Abort { txn } => self.abort(txn, move || mailbox.reply(id, Ok(Reply::Done))),
            read => self.reads.push(id, read),
        }
    }
}
