//! The simulated users: each reads, loads and writes at random, and records it in the ledger.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use blobferry_cache::CachedBlob;
use blobferry_protocol::{BlobId, BlobInfo, Oid, RequestError, Revision, Tid, TxnMeta};
use blobferry_session::client::{BlobSource, CallError, Session, Transaction, VoteError};
use bytes::Bytes;
use fastrand::Rng;

use super::answer::{Answer, call};
use super::ledger::{Ledger, Put, TxnState, blob_bytes, record};
use super::world::World;

/// The first object.
pub(super) const FIRST_OID: u64 = 1000;

/// A user, and what it works with.
pub(super) struct User {
    pub(super) number: usize,
    pub(super) world: Rc<World>,
    pub(super) session: Session,
    pub(super) ledger: Rc<RefCell<Ledger>>,
    pub(super) rng: Rng,
    pub(super) objects: u64,
    pub(super) largest: u64,
    pub(super) runs_pack: bool,
    /// Where the user puts the files that it stores.
    pub(super) directory: PathBuf,
    pub(super) backlog: Rc<RefCell<Backlog>>,
}

/// What a user still has to do. It outlives the user's process.
#[derive(Debug)]
pub(super) struct Backlog {
    /// The number of operations left.
    operations: usize,
    /// The blob that the user was loading, as object and revision. If the process is killed
    /// meanwhile, the next one loads it again.
    blob: Option<(Oid, Revision)>,
}

impl Backlog {
    pub(super) fn of(operations: usize) -> Backlog {
        Backlog { operations, blob: None }
    }

    pub(super) fn operations(&self) -> usize {
        self.operations
    }

    pub(super) fn is_done(&self) -> bool {
        self.operations == 0 && self.blob.is_none()
    }
}

impl User {
    /// Performs all operations of the user.
    pub(super) async fn run(mut self) {
        match call(|done| self.session.connected(done)).await {
            Some(Ok(())) => {}
            _ => return, // it has no server: it will try again
        }
        let unread = self.backlog.borrow_mut().blob.take();
        if let Some((oid, revision)) = unread {
            self.load_blob_of(oid, &revision).await;
        }
        while self.backlog.borrow().operations > 0 {
            self.backlog.borrow_mut().operations -= 1;
            match self.rng.u8(..100) {
                0..40 => self.write().await,
                40..75 => self.read().await,
                75..85 => self.read_history().await,
                85..92 => self.read_range().await,
                92..94 if self.runs_pack => self.pack().await,
                _ => {
                    let pause = Duration::from_millis(self.rng.u64(1..5000));
                    self.world.sleep(self.number, pause).await;
                }
            }
        }
    }

    fn oid(&mut self) -> Oid {
        Oid(FIRST_OID + self.rng.u64(..self.objects))
    }

    /// Waits for an answer. That every call is answered is the first promise to check.
    async fn answer<T, E>(&self, call: &str, answer: Answer<T, E>) -> Option<Result<T, E>> {
        let answer = answer.await;
        if answer.is_none() {
            self.ledger.borrow_mut().break_rule(format!("user {}: {call} was never answered", self.number));
        }
        answer
    }

    /// Loads the current revision of an object.
    async fn load(&self, oid: Oid) -> Option<Result<Option<Revision>, CallError>> {
        let begin = self.world.moment();
        let loaded = self.answer("load", call(|done| self.session.load(oid, done))).await?;
        let end = self.world.moment();
        let found = match loaded {
            Ok(revision) => Some(revision),
            Err(CallError::Refused(RequestError::NoSuchObject { .. })) => None,
            Err(error) => {
                self.note(format_args!("load {oid}: {error}"));
                return Some(Err(error));
            }
        };
        self.note(format_args!("load {oid}: {:?}", found.as_ref().map(|found| found.tid)));
        self.ledger.borrow_mut().read(oid, found.as_ref(), begin, end);
        if let Some(revision) = &found
            && revision.tid > self.session.last_tid()
        {
            self.ledger.borrow_mut().break_rule(format!(
                "user {} sees {}, but was notified of commits up to {} only",
                self.number,
                revision.tid,
                self.session.last_tid()
            ));
        }
        Some(Ok(found))
    }

    async fn read(&mut self) {
        let oid = self.oid();
        let Some(Ok(Some(revision))) = self.load(oid).await else { return };
        self.load_blob_of(oid, &revision).await;
    }

    /// Loads the blob of a revision, as a file or into memory.
    async fn load_blob_of(&mut self, oid: Oid, revision: &Revision) {
        let Some(size) = revision.blob.map(|blob| blob.size) else { return };
        let blob = BlobId { oid, tid: revision.tid };
        self.backlog.borrow_mut().blob = Some((oid, revision.clone()));
        let loaded = match self.rng.bool() {
            true => {
                let loaded = call(|done| self.session.load_blob(blob, None, done));
                let loaded = self.answer("load_blob", loaded).await;
                loaded.map(|loaded| loaded.map(|cached| read_all(&cached).ok()))
            }
            false => {
                let loaded =
                    self.answer("load_bytes", call(|done| self.session.load_bytes(blob, done))).await;
                loaded.map(|loaded| loaded.map(|bytes| Some(bytes.to_vec())))
            }
        };
        self.backlog.borrow_mut().blob = None;
        let Some(loaded) = loaded else { return };
        match loaded {
            Ok(found) => {
                let whose = self.ledger.borrow_mut().check_revision(oid, revision);
                let Some(writing) = whose else { return };
                self.note(format_args!("blob {blob}: {} bytes", found.as_ref().map_or(0, Vec::len)));
                let mut ledger = self.ledger.borrow_mut();
                ledger.blobs_read += 1;
                if found.as_deref() != Some(&blob_bytes(writing, oid, size)[..]) {
                    ledger.break_rule(format!("user {} was given wrong bytes for blob {blob}", self.number));
                }
            }
            Err(error) => self.blob_refused(blob, &error),
        }
    }

    /// Checks why a blob was refused. A blob of a known revision is refused only for reasons
    /// outside the server's control.
    fn blob_refused(&self, blob: BlobId, error: &CallError) {
        self.note(format_args!("blob {blob}: {error}"));
        let mut ledger = self.ledger.borrow_mut();
        let fine = match error {
            CallError::Disconnected { .. } | CallError::Cache(_) => true,
            CallError::Refused(RequestError::NoSuchBlob { .. }) => ledger.may_be_forgotten(blob.tid),
            CallError::Refused(RequestError::Deadline { .. } | RequestError::Stopping) => true,
            _ => false,
        };
        if !fine {
            ledger.break_rule(format!("user {}: blob {blob} is refused: {error}", self.number));
        }
    }

    /// Reads the history of an object, and one of its revisions.
    async fn read_history(&mut self) {
        let oid = self.oid();
        let history = call(|done| self.session.history(oid, 5, done));
        let Some(Ok(history)) = self.answer("history", history).await else { return };
        self.note(format_args!("history {oid}: {} entries", history.len()));
        if !history.is_sorted_by(|newer, older| newer.tid > older.tid) {
            self.ledger.borrow_mut().break_rule(format!("the history of {oid} is out of order"));
        }
        let Some(entry) = self.rng.choice(&history) else { return };
        let tid = entry.tid;
        let loaded = match self.rng.bool() {
            true => self.answer("load_serial", call(|done| self.session.load_serial(oid, tid, done))).await,
            false => {
                let before = Tid(tid.0 + 1);
                let loaded = call(|done| self.session.load_before(oid, before, done));
                let found = self.answer("load_before", loaded).await;
                found.map(|found| {
                    let missing = RequestError::NoSuchRevision { oid, tid };
                    found.and_then(|found| found.ok_or(CallError::Refused(missing)))
                })
            }
        };
        match loaded {
            Some(Ok(revision)) => {
                self.ledger.borrow_mut().check_revision(oid, &revision);
                if revision.tid != tid {
                    let found = revision.tid;
                    self.ledger.borrow_mut().break_rule(format!("asked for {oid} at {tid}, and got {found}"));
                }
                self.load_blob_of(oid, &revision).await;
            }
            Some(Err(CallError::Refused(
                error @ (RequestError::NoSuchRevision { .. } | RequestError::NoSuchObject { .. }),
            ))) if !self.ledger.borrow().may_be_forgotten(tid) => {
                self.ledger
                    .borrow_mut()
                    .break_rule(format!("{oid} at {tid} is in the history, and then: {error}"));
            }
            _ => {}
        }
    }

    /// Loads a range of a blob, without the cache.
    async fn read_range(&mut self) {
        let oid = self.oid();
        let Some(Ok(Some(revision))) = self.load(oid).await else { return };
        let Some(size) = revision.blob.map(|blob| blob.size) else { return };
        let blob = BlobId { oid, tid: revision.tid };
        let from = self.rng.u64(..=size);
        let upto = self.rng.u64(from..=size + 10);
        let loaded = call(|done| self.session.load_range(blob, from..upto, done));
        match self.answer("load_range", loaded).await {
            Some(Ok(bytes)) => {
                let whose = self.ledger.borrow_mut().check_revision(oid, &revision);
                let Some(writing) = whose else { return };
                let whole = blob_bytes(writing, oid, size);
                let wanted = whole.get(from as usize..upto.min(size) as usize);
                self.note(format_args!("part of {blob}: {} bytes", bytes.len()));
                if wanted != Some(&bytes[..]) {
                    let mut ledger = self.ledger.borrow_mut();
                    ledger.break_rule(format!("user {} got a wrong part of blob {blob}", self.number));
                }
            }
            Some(Err(error)) => self.blob_refused(blob, &error),
            None => {}
        }
    }

    async fn pack(&mut self) {
        let before = self.session.last_tid();
        self.ledger.borrow_mut().pack(before);
        let packed = self.answer("pack", call(|done| self.session.pack(before, done))).await;
        self.note(format_args!(
            "pack before {before}: {:?}",
            packed.map(|packed| packed.map_err(|e| e.to_string()))
        ));
    }

    /// Makes one transaction.
    async fn write(&mut self) {
        let count = self.rng.u64(1..=3.min(self.objects));
        let mut oids = Vec::new();
        while (oids.len() as u64) < count {
            let oid = self.oid();
            if !oids.contains(&oid) {
                oids.push(oid);
            }
        }
        let mut bases = Vec::new();
        for oid in oids {
            let Some(Ok(found)) = self.load(oid).await else { return };
            bases.push((oid, found.map_or(Tid::ZERO, |revision| revision.tid)));
        }
        let meta = TxnMeta { user: format!("user {}", self.number).into(), ..TxnMeta::default() };
        let Ok(mut transaction) = self.session.begin(meta) else { return };
        let moment = self.world.moment();
        let writing = self.ledger.borrow_mut().begin(transaction.id(), moment);
        self.note(format_args!("begin {} as w{writing} for {bases:?}", transaction.id()));
        if !self.store_all(&transaction, writing, &bases).await {
            self.abort(transaction, writing).await;
            return;
        }
        match self.rng.u8(..100) {
            0..70 => self.commit(&mut transaction, writing).await,
            70..88 => self.vote_and_finish(transaction, writing).await,
            88..95 => self.abort(transaction, writing).await,
            _ => {
                drop(transaction);
                self.decide(writing, TxnState::Failed);
            }
        }
    }

    /// Stores all objects, one after the other or all at once.
    async fn store_all(&mut self, transaction: &Transaction, writing: usize, bases: &[(Oid, Tid)]) -> bool {
        let one_by_one = self.rng.bool();
        let mut stores: Vec<Answer<(), CallError>> = Vec::new();
        let mut blobs: Vec<Answer<BlobInfo, CallError>> = Vec::new();
        for (oid, base) in bases {
            let size = (self.rng.u8(..10) < 6).then(|| match self.rng.u8(..8) {
                0 => 0,
                1..3 => self.rng.u64(..1000),
                _ => self.rng.u64(..self.largest),
            });
            self.ledger.borrow_mut().put(writing, *oid, Put { base: *base, blob: size });
            let data = record(writing, *oid, size);
            match size {
                None => stores.push(call(|done| transaction.store(*oid, *base, data, done))),
                Some(size) => {
                    let source = self.source(writing, *oid, size);
                    blobs.push(call(|done| transaction.store_blob(*oid, *base, data, source, None, done)));
                }
            }
            if one_by_one && !self.all_stored(&mut stores, &mut blobs).await {
                return false;
            }
        }
        // Without waiting, the commit follows at once: the client holds it back until all stores
        // are answered.
        (!one_by_one && self.rng.bool()) || self.all_stored(&mut stores, &mut blobs).await
    }

    async fn all_stored(
        &self,
        stores: &mut Vec<Answer<(), CallError>>,
        blobs: &mut Vec<Answer<BlobInfo, CallError>>,
    ) -> bool {
        let mut all = true;
        for answer in stores.drain(..) {
            all &= matches!(self.answer("store", answer).await, Some(Ok(())));
        }
        for answer in blobs.drain(..) {
            let answer = self.answer("store_blob", answer).await;
            if let Some(Err(error)) = &answer {
                self.note(format_args!("store_blob: {error}"));
                if let CallError::Refused(RequestError::Mismatch { .. } | RequestError::BadRange { .. }) =
                    error
                {
                    let what = format!(
                        "user {}: a blob that was stored as it should is refused: {error}",
                        self.number
                    );
                    self.ledger.borrow_mut().break_rule(what);
                }
            }
            all &= matches!(answer, Some(Ok(_)));
        }
        all
    }

    fn source(&mut self, writing: usize, oid: Oid, size: u64) -> BlobSource {
        let bytes = blob_bytes(writing, oid, size);
        let kind = self.rng.u8(..4);
        if kind == 0 {
            return BlobSource::bytes(Bytes::from(bytes));
        }
        let path = self.directory.join(format!("{writing}.{}", oid.0));
        if fs::create_dir_all(&self.directory).and_then(|()| fs::write(&path, &bytes)).is_err() {
            return BlobSource::bytes(Bytes::from(bytes));
        }
        match kind {
            1 => BlobSource::moved(path),
            2 => BlobSource::copied(path),
            _ => BlobSource::streamed(path),
        }
    }

    fn decide(&self, writing: usize, state: TxnState) {
        let moment = self.world.moment();
        self.note(format_args!("w{writing}: {state:?}"));
        self.ledger.borrow_mut().decide(writing, state, moment);
    }

    async fn abort(&self, transaction: Transaction, writing: usize) {
        self.decide(writing, TxnState::Failed);
        self.answer("abort", call(|done| transaction.abort(done))).await;
    }

    async fn commit(&mut self, transaction: &mut Transaction, writing: usize) {
        for attempt in 0..3 {
            let answer = call(|done| transaction.commit(done));
            match self.answer("commit", answer).await {
                Some(Err(VoteError::Conflict(conflicts))) if attempt < 2 => {
                    self.note(format_args!("w{writing}: conflicts {conflicts:?}"));
                    self.ledger.borrow_mut().conflicts += 1;
                    for conflict in conflicts {
                        let size = self.blob_size(writing, conflict.oid);
                        let data = record(writing, conflict.oid, size);
                        let (oid, base) = (conflict.oid, conflict.committed);
                        self.ledger.borrow_mut().put(writing, oid, Put { base, blob: size });
                        let stored = match size {
                            None => {
                                let stored = call(|done| transaction.store(oid, base, data, done));
                                self.answer("store", stored).await.is_some_and(|stored| stored.is_ok())
                            }
                            Some(size) => {
                                let source = self.source(writing, oid, size);
                                let stored =
                                    call(|done| transaction.store_blob(oid, base, data, source, None, done));
                                self.answer("store_blob", stored).await.is_some_and(|stored| stored.is_ok())
                            }
                        };
                        if !stored {
                            return self.decide(writing, TxnState::Failed);
                        }
                    }
                }
                Some(result) => return self.committed(writing, result).await,
                None => return,
            }
        }
    }

    fn blob_size(&self, writing: usize, oid: Oid) -> Option<u64> {
        self.ledger.borrow().writings.get(writing).and_then(|writing| writing.puts.get(&oid)?.blob)
    }

    async fn vote_and_finish(&mut self, mut transaction: Transaction, writing: usize) {
        match self.answer("vote", call(|done| transaction.vote(done))).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                self.note(format_args!("w{writing}: vote: {error}"));
                return self.abort(transaction, writing).await;
            }
            None => return,
        }
        if self.rng.u8(..3) == 0 {
            let longest = if self.rng.u8(..8) == 0 { 40_000 } else { 2000 };
            let pause = Duration::from_millis(self.rng.u64(..longest));
            self.world.sleep(self.number, pause).await;
        }
        if self.rng.u8(..8) == 0 {
            return self.abort(transaction, writing).await;
        }
        let finished = self.answer("finish", call(|done| transaction.finish(done))).await;
        if let Some(result) = finished {
            self.committed(writing, result.map_err(VoteError::Call)).await;
        }
    }

    /// Records what became of a commit. If that is unknown, requests the outcome until it is known.
    async fn committed(&mut self, writing: usize, result: Result<Tid, VoteError>) {
        let error = match result {
            Ok(tid) => return self.decide(writing, TxnState::Committed(tid)),
            Err(VoteError::Conflict(_)) => return self.decide(writing, TxnState::Failed),
            Err(VoteError::Call(error)) => error,
        };
        self.note(format_args!("w{writing}: {error}"));
        match error {
            CallError::OutcomeUnknown { .. } | CallError::Refused(RequestError::Undecided { .. }) => {}
            // A client that was closed meanwhile reports only this.
            CallError::Disconnected { .. } => {}
            _ => return self.decide(writing, TxnState::Failed),
        }
        let txn = self.ledger.borrow().writings.get(writing).map(|writing| writing.txn);
        let Some(txn) = txn else { return };
        for _ in 0..20 {
            match self.answer("outcome", call(|done| self.session.outcome(txn, done))).await {
                Some(Ok(outcome)) => {
                    let moment = self.world.moment();
                    self.note(format_args!("w{writing}: outcome {outcome:?}"));
                    return self.ledger.borrow_mut().outcome(writing, outcome, moment);
                }
                Some(Err(_)) => self.world.sleep(self.number, Duration::from_secs(3)).await,
                None => return,
            }
        }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.world.note(format_args!("u{} {what}", self.number));
    }
}

fn read_all(cached: &CachedBlob) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(cached.path())?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
