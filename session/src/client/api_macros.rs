//! What users call, written once: a transport says how it waits, and has the same methods as every other.
//!
//! Rust can not be generic over `async`, so these are macros. They are expanded inside the `impl` of a transport's
//! `Client` and `Transaction`, with the name of its function that waits for a [`Completion`](super::Completion) of a
//! session, and with `async` and `await` where it does that asynchronously.

/// The methods of a transport's `Client` that do not depend on its runtime. Its `self.0.session` is the
/// [`Session`](crate::client::Session); the `Transaction`, `News` and their kinds in its scope are the transport's.
#[doc(hidden)]
#[macro_export]
macro_rules! client_methods {
    ($wait:path $(, $async:tt, $await:tt)?) => {
        /// The cache that blobs are loaded into.
        #[must_use]
        pub fn cache(&self) -> &$crate::cache::Cache {
            self.session().cache()
        }

        /// The client without its transport: the same calls with callbacks, for who wants to be free of the way in
        /// which this one waits.
        #[must_use]
        pub fn session(&self) -> &$crate::client::Session {
            &self.0.session
        }

        /// The transactions that are committed from now on, this client's own among them. Each comes before any answer
        /// that exposes it. Of more than can wait to be heard, all that is told is that everything may have changed.
        #[must_use]
        pub fn invalidations(&self) -> Invalidations {
            let (tell, news) = Notifications::new();
            self.session().listen(Box::new(tell));
            news
        }

        /// What happens to the connection from now on.
        #[must_use]
        pub fn connection_events(&self) -> ConnectionEvents {
            let (tell, news) = Notifications::new();
            self.session().watch(Box::new(tell));
            news
        }

        /// The last transaction that this client has heard of. Everything up to it can be read: a good moment to
        /// read many objects as of.
        #[must_use]
        pub fn last_tid(&self) -> $crate::protocol::Tid {
            self.session().last_tid()
        }

        /// Exactly `count` unused oids.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn new_oids(
            &self,
            count: u32,
        ) -> Result<Vec<$crate::protocol::Oid>, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().new_oids(count, done))$(.$await)?
        }

        /// The current revision of an object.
        ///
        /// # Errors
        /// [`NoSuchObject`](blobferry_protocol::RequestError::NoSuchObject); see [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn load(
            &self,
            oid: $crate::protocol::Oid,
        ) -> Result<$crate::protocol::Revision, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().load(oid, done))$(.$await)?
        }

        /// One exact revision of an object.
        ///
        /// # Errors
        /// [`NoSuchRevision`](blobferry_protocol::RequestError::NoSuchRevision); see
        /// [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn load_serial(
            &self,
            oid: $crate::protocol::Oid,
            tid: $crate::protocol::Tid,
        ) -> Result<$crate::protocol::Revision, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().load_serial(oid, tid, done))$(.$await)?
        }

        /// The last revision of an object before a transaction; `None` if it is younger than that.
        ///
        /// # Errors
        /// [`NoSuchObject`](blobferry_protocol::RequestError::NoSuchObject); see [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn load_before(
            &self,
            oid: $crate::protocol::Oid,
            before: $crate::protocol::Tid,
        ) -> Result<Option<$crate::protocol::Revision>, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().load_before(oid, before, done))$(.$await)?
        }

        /// The revisions of an object, newest first, at most `limit` (the server may give fewer).
        ///
        /// # Errors
        /// [`NoSuchObject`](blobferry_protocol::RequestError::NoSuchObject); see [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn history(
            &self,
            oid: $crate::protocol::Oid,
            limit: u32,
        ) -> Result<Vec<$crate::protocol::HistoryEntry>, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().history(oid, limit, done))$(.$await)?
        }

        /// The server's counters, by name.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn status(&self) -> Result<Vec<(String, u64)>, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().status(done))$(.$await)?
        }

        /// Forgets the revisions that were replaced before a transaction.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn pack(
            &self,
            before: $crate::protocol::Tid,
        ) -> Result<$crate::protocol::Packed, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().pack(before, done))$(.$await)?
        }

        /// What has become of a transaction; if it is not committed, it never will be.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn outcome(
            &self,
            txn: $crate::protocol::TxnId,
        ) -> Result<$crate::protocol::Outcome, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().outcome(txn, done))$(.$await)?
        }

        /// A blob, as an open file in the cache: it is there, or somebody on this machine is downloading it, or it is
        /// downloaded now. A download that nobody waits for any more goes on: it is of use to the next one.
        ///
        /// # Errors
        /// [`NoSuchBlob`](blobferry_protocol::RequestError::NoSuchBlob); the cache's; see
        /// [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn load_blob(
            &self,
            blob: $crate::protocol::BlobId,
        ) -> Result<$crate::cache::CachedBlob, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().load_blob(blob, None, done))$(.$await)?
        }

        /// The same, telling how far the download is. Where there is nothing to download nothing is told.
        ///
        /// # Errors
        /// As [`load_blob`](Self::load_blob).
        pub $($async)? fn load_blob_with(
            &self,
            blob: $crate::protocol::BlobId,
            progress: impl Fn($crate::io::Progress) + Send + Sync + 'static,
        ) -> Result<$crate::cache::CachedBlob, $crate::client::CallError> {
            let progress: $crate::io::OnProgress = ::std::sync::Arc::new(progress);
            $wait(self.session(), |done| self.session().load_blob(blob, Some(progress), done))$(.$await)?
        }

        /// A blob's bytes, in memory, whole and verified: from the cache, or from the server, or from who is downloading it
        /// already. This is the way to load small blobs, of at most [`Cache::SMALL`](blobferry_cache::Cache::SMALL) bytes:
        /// all processes of the machine find them in the cache, but no file is made for each. A larger blob goes through
        /// a file, as with [`load_blob`](Self::load_blob), and all of it is read.
        ///
        /// # Errors
        /// As [`load_blob`](Self::load_blob).
        pub $($async)? fn load_bytes(
            &self,
            blob: $crate::protocol::BlobId,
        ) -> Result<$crate::bytes::Bytes, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().load_bytes(blob, done))$(.$await)?
        }

        /// Reads a blob while it arrives, whoever on this machine downloads it; if nobody does, this client does. The
        /// bytes come as they arrive; the end comes only when all of them were verified, and if they can not be, an error
        /// comes in its place. Reading blocks the thread, also where calls are awaited.
        ///
        /// # Errors
        /// The cache's; see [`CallError`](blobferry_cache::CallError).
        pub fn follow_blob(
            &self,
            blob: $crate::protocol::BlobId,
        ) -> Result<$crate::cache::Follow, $crate::client::CallError> {
            self.session().follow_blob(blob)
        }

        /// A part of a blob, in memory, without caching it; less than asked for where the blob ends.
        ///
        /// # Errors
        /// [`BadRange`](blobferry_protocol::RequestError::BadRange) if it begins behind the end; see
        /// [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn load_range(
            &self,
            blob: $crate::protocol::BlobId,
            range: ::std::ops::Range<u64>,
        ) -> Result<Vec<u8>, $crate::client::CallError> {
            $wait(self.session(), |done| self.session().load_range(blob, range, done))$(.$await)?
        }

        /// Begins a transaction. Does not wait for the server: should it refuse, the next call in the transaction
        /// says so.
        ///
        /// # Errors
        /// [`CallError::NoName`](blobferry_cache::CallError::NoName).
        pub fn begin(
            &self,
            meta: $crate::protocol::TxnMeta,
        ) -> Result<Transaction, $crate::client::CallError> {
            Ok(Transaction::new(self.session().begin(meta)?))
        }
    };
}

/// The methods of a transport's `Transaction` that do not depend on its runtime. Its only field is the
/// [`Transaction`](crate::client::Transaction) that they call.
#[doc(hidden)]
#[macro_export]
macro_rules! transaction_methods {
    ($wait:path $(, $async:tt, $await:tt)?) => {
        pub(crate) fn new(transaction: $crate::client::Transaction) -> Self {
            Self(transaction)
        }

        /// The transaction's name, under which its [outcome](blobferry_cache::Client::outcome) can be asked for ever after.
        #[must_use]
        pub fn id(&self) -> $crate::protocol::TxnId {
            self.0.id()
        }

        /// Stores an object's record, without a blob. `base` is the revision that the new one was made from, or
        /// [`Tid::ZERO`](blobferry_protocol::Tid::ZERO) for a new object.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError). The transaction can only be aborted then.
        pub $($async)? fn store(
            &self,
            oid: $crate::protocol::Oid,
            base: $crate::protocol::Tid,
            data: Vec<u8>,
        ) -> Result<(), $crate::client::CallError> {
            $wait(&self.0.session().clone(), |done| self.0.store(oid, base, data, done))$(.$await)?
        }

        /// Deletes an object; with [`Tid::ZERO`](blobferry_protocol::Tid::ZERO) as its base, takes back that it was
        /// stored in this transaction.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError). The transaction can only be aborted then.
        pub $($async)? fn delete(
            &self,
            oid: $crate::protocol::Oid,
            base: $crate::protocol::Tid,
        ) -> Result<(), $crate::client::CallError> {
            $wait(&self.0.session().clone(), |done| self.0.delete(oid, base, done))$(.$await)?
        }

        /// Stores an object's record with a blob. Done when the server has it on disk. Many may run at once in one
        /// transaction; a vote waits for all of them.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError). The transaction can only be aborted then.
        pub $($async)? fn store_blob(
            &self,
            oid: $crate::protocol::Oid,
            base: $crate::protocol::Tid,
            data: Vec<u8>,
            source: $crate::client::BlobSource,
        ) -> Result<$crate::protocol::BlobInfo, $crate::client::CallError> {
            $wait(&self.0.session().clone(), |done| self.0.store_blob(oid, base, data, source, None, done))$(.$await)?
        }

        /// The same, telling how far it is.
        ///
        /// # Errors
        /// As [`store_blob`](Self::store_blob).
        pub $($async)? fn store_blob_with(
            &self,
            oid: $crate::protocol::Oid,
            base: $crate::protocol::Tid,
            data: Vec<u8>,
            source: $crate::client::BlobSource,
            progress: impl Fn($crate::io::Progress) + Send + Sync + 'static,
        ) -> Result<$crate::protocol::BlobInfo, $crate::client::CallError> {
            let progress: $crate::io::OnProgress = ::std::sync::Arc::new(progress);
            $wait(&self.0.session().clone(), |done| self.0.store_blob(oid, base, data, source, Some(progress), done))$(.$await)?
        }

        /// Asks whether everything can be committed, and makes sure that it then can.
        ///
        /// # Errors
        /// [`VoteError::Conflict`](blobferry_cache::VoteError::Conflict), with the transaction open as before; or
        /// [`VoteError::Call`](blobferry_cache::VoteError::Call), and it is over.
        pub $($async)? fn vote(&mut self) -> Result<(), $crate::client::VoteError> {
            $wait(&self.0.session().clone(), |done| self.0.vote(done))$(.$await)?
        }

        /// Commits what was voted for: everything in the transaction is durable, and visible to all, at the tid that
        /// this returns.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError). After
        /// [`CallError::Disconnected`](blobferry_cache::CallError::Disconnected) ask for the
        /// [outcome](blobferry_cache::Client::outcome).
        pub $($async)? fn finish(self) -> Result<$crate::protocol::Tid, $crate::client::CallError> {
            $wait(&self.0.session().clone(), |done| self.0.finish(done))$(.$await)?
        }

        /// Votes and finishes in one round trip, for who coordinates nothing else.
        ///
        /// # Errors
        /// [`VoteError::Conflict`](blobferry_cache::VoteError::Conflict), with the transaction open as before: store what is
        /// resolved, and commit again. Or [`VoteError::Call`](blobferry_cache::VoteError::Call), and it is over.
        pub $($async)? fn commit(&mut self) -> Result<$crate::protocol::Tid, $crate::client::VoteError> {
            $wait(&self.0.session().clone(), |done| self.0.commit(done))$(.$await)?
        }

        /// Gives it up.
        ///
        /// # Errors
        /// See [`CallError`](blobferry_cache::CallError).
        pub $($async)? fn abort(self) -> Result<(), $crate::client::CallError> {
            $wait(&self.0.session().clone(), |done| self.0.abort(done))$(.$await)?
        }
    };
}
