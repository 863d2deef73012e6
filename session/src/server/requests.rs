//! Dispatch of a client's requests. Changes of a transaction go to its strand, and reads to the other reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use blobferry_protocol::{Reply, Request, RequestError, RequestId, TxnId, server};
use blobferry_store::Store;

use crate::server::decide;
use crate::server::detached::{Part, TransactionLease};
use crate::server::handler::State;
use crate::server::upload::Upload;

/// Bytes of records that wait for their blobs, at most. To stop reading would not help: the blobs have to be read.
const MAX_WAITING_RECORDS: u64 = 64 << 20;

impl State {
    /// Registers a transaction that was begun or attached on this connection.
    pub(super) fn begun(&mut self, connection: &server::Connection, lease: Arc<TransactionLease>) {
        self.leases.insert(lease.txn(), lease);
        // A failed vote leaves its strand behind as well.
        let most = 2 * self.core.config().connection.limits.transactions as usize;
        if self.leases.len().max(self.strands.len()) > most {
            let open: BTreeSet<TxnId> = connection.transactions().map(|(txn, _)| txn).collect();
            self.strands.retain(&open);
            self.leases.retain(|txn, lease| {
                let open = open.contains(txn);
                if !open {
                    lease.end();
                }
                open
            });
        }
    }

    /// Notes a request that puts something into a transaction, and returns the lease of the transaction. It is `None` if
    /// the transaction could not begin.
    fn arrived(&self, txn: TxnId, id: RequestId) -> Option<Arc<TransactionLease>> {
        let lease = self.leases.get(&txn)?.clone();
        lease.arrived(id);
        Some(lease)
    }

    /// Returns the job that puts something into a transaction and answers.
    fn put(
        &self,
        txn: TxnId,
        id: RequestId,
        put: impl FnOnce(&dyn Store) -> Result<(), RequestError> + Send + 'static,
    ) -> impl FnOnce() + Send + 'static {
        let (store, mailbox, lease) =
            (self.core.store().clone(), self.mailbox.clone(), self.arrived(txn, id));
        move || {
            let put = put(&*store);
            if let (Ok(()), Some(lease)) = (&put, &lease) {
                lease.done(id);
            }
            mailbox.reply(id, put.map(|()| Reply::Done));
        }
    }

    /// Aborts a transaction if it is on this connection or detached, after all earlier requests of it.
    pub(super) fn abort(&mut self, txn: TxnId, then: impl FnOnce() + Send + 'static) {
        let lease = self.leases.remove(&txn);
        lease.iter().for_each(|lease| lease.end());
        let core = self.core.clone();
        self.strands.last(txn).run_on_pool(move || {
            match lease {
                Some(_) => core.store().abort(txn),
                None => core.detached().abort(txn),
            }
            then();
        });
    }

    /// Dispatches a request.
    pub(super) fn request(&mut self, connection: &mut server::Connection, id: RequestId, request: Request) {
        let _entered = request
            .txn()
            .map(|txn| tracing::debug_span!(target: "blobferry::server", "transaction", %txn).entered());
        let (store, mailbox) = (self.core.store().clone(), self.mailbox.clone());
        match request {
            Request::Begin { txn, meta } => {
                let begun = store.begin(txn, meta);
                if begun.is_ok() {
                    let lease = self.core.detached().lease(txn, &self.mailbox);
                    self.begun(connection, lease);
                }
                let _ = connection.reply(id, begun.map(|()| Reply::Done));
            }
            Request::Attach { txn } => self.core.detached().attach(txn, id, &self.mailbox),
            Request::Store { txn, oid, base, data } => {
                let bytes = data.len() as u64;
                self.records.insert(id, bytes);
                let put = self.put(txn, id, move |store| store.store(txn, oid, base, data));
                self.strands.put(txn, bytes).run(&mut self.budget, put);
            }
            Request::Delete { txn, oid, base } => {
                let put = self.put(txn, id, move |store| store.delete(txn, oid, base));
                self.strands.put(txn, 0).run(&mut self.budget, put);
            }
            Request::StoreShared { txn, oid, base, data, name, size, digest } => {
                let bytes = data.len() as u64;
                self.records.insert(id, bytes);
                let put = self
                    .put(txn, id, move |store| store.store_shared(txn, oid, base, data, &name, size, digest));
                self.strands.put(txn, bytes).run_on_pool(put);
            }
            Request::StoreBlob { txn, oid, base, data } => {
                let actual = data.len() as u64 + self.waiting_records.values().sum::<u64>();
                if actual > MAX_WAITING_RECORDS {
                    let what = "bytes of records that wait for their blobs".to_owned();
                    let _ = connection
                        .reply(id, Err(RequestError::Limit { what, limit: MAX_WAITING_RECORDS, actual }));
                    return;
                }
                self.waiting_records.insert(id, data.len() as u64);
                self.strands.upload(txn);
                let (core, lease) = (self.core.clone(), self.arrived(txn, id));
                let part = lease.as_ref().and_then(|lease| lease.take_part(oid));
                let part = part.map(|part| Part { request: id, ..part });
                let upload = Upload { core, mailbox, lease, id, txn, oid, base, data, part };
                self.incoming.expect(id.into(), Box::new(upload));
            }
            Request::Vote { txn } => {
                let turn = self.strands.next(txn);
                turn.run(&mut self.budget, move || decide::vote(&store, mailbox, id, txn));
            }
            Request::Finish { txn } => {
                self.leases.get(&txn).into_iter().for_each(|lease| lease.end());
                let turn = self.strands.last(txn);
                turn.run(&mut self.budget, move || decide::finish(&store, mailbox, id, txn));
            }
            Request::Commit { txn } => {
                let lease = self.leases.get(&txn).cloned();
                let turn = self.strands.last(txn);
                turn.run(&mut self.budget, move || decide::commit(&store, mailbox, lease, id, txn));
            }
            Request::Abort { txn } => self.abort(txn, move || mailbox.reply(id, Ok(Reply::Done))),
            read => self.reads.push(id, read),
        }
    }
}
