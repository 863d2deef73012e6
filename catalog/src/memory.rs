//! Objects in memory, for tests of code that is written against [`Objects`].
//!
//! The implementation is simple: a transaction is checked as a whole when it commits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use blobferry_protocol::{BlobInfo, Conflict, Digest, Oid, RequestError, Revision, Tid};

use crate::objects::{Attempt, Objects, Writes};

/// What another writer does to the objects.
pub type Others = Box<dyn FnOnce(&Memory)>;

/// A store in memory, for one thread.
#[derive(Default)]
pub struct Memory {
    revisions: RefCell<BTreeMap<Oid, Vec<Stored>>>,
    last_tid: Cell<u64>,
    last_oid: Cell<u64>,
    /// The number of attempts to commit.
    pub attempts: Cell<u32>,
    /// Other writers that are faster: each is called before one of the next commits, the last
    /// first. Their own commits call none.
    pub before_commit: RefCell<Vec<Others>>,
}

struct Stored {
    tid: Tid,
    written: Written,
}

#[derive(Clone, Debug)]
struct Written {
    /// `None` if the object is deleted.
    data: Option<Vec<u8>>,
    blob: Option<BlobInfo>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("last_tid", &self.last_tid).finish_non_exhaustive()
    }
}

/// A transaction on [`Memory`].
#[derive(Debug)]
pub struct MemoryTxn<'a> {
    memory: &'a Memory,
    /// The writes, with the revisions that they are made from.
    writes: RefCell<BTreeMap<Oid, (Tid, Written)>>,
}

impl Memory {
    /// Opens a transaction.
    pub fn begin(&self) -> MemoryTxn<'_> {
        MemoryTxn { memory: self, writes: RefCell::default() }
    }

    /// Returns every object that exists.
    pub fn live(&self) -> Vec<Oid> {
        let revisions = self.revisions.borrow();
        revisions
            .iter()
            .filter(|(_, all)| all.last().is_some_and(|last| last.written.data.is_some()))
            .map(|(oid, _)| *oid)
            .collect()
    }

    /// Returns the objects that a transaction has stored or deleted.
    pub fn changed_by(&self, tid: Tid) -> Vec<Oid> {
        let revisions = self.revisions.borrow();
        revisions
            .iter()
            .filter(|(_, all)| all.iter().any(|one| one.tid == tid))
            .map(|(oid, _)| *oid)
            .collect()
    }

    /// Replaces an object's current record by other bytes.
    pub fn damage(&self, oid: Oid, data: &[u8]) {
        let mut revisions = self.revisions.borrow_mut();
        if let Some(last) = revisions.get_mut(&oid).and_then(|all| all.last_mut()) {
            last.written.data = Some(data.to_vec());
        }
    }

    /// Removes every revision that was replaced, and every object that was deleted.
    pub fn pack(&self) {
        for all in self.revisions.borrow_mut().values_mut() {
            all.drain(..all.len().saturating_sub(1));
            all.retain(|last| last.written.data.is_some());
        }
    }

    fn current(&self, oid: Oid) -> Tid {
        let revisions = self.revisions.borrow();
        let last = revisions.get(&oid).and_then(|all| all.last());
        last.filter(|last| last.written.data.is_some()).map_or(Tid::ZERO, |last| last.tid)
    }
}

impl Objects for Memory {
    type Error = RequestError;

    fn last_tid(&self) -> Tid {
        Tid(self.last_tid.get())
    }

    async fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, RequestError> {
        let revisions = self.revisions.borrow();
        let all = revisions.get(&oid).map(Vec::as_slice).unwrap_or_default();
        let found = all.iter().rfind(|stored| stored.tid < before);
        Ok(found.and_then(|Stored { tid, written }| {
            Some(Revision { tid: *tid, next: None, data: written.data.clone()?, blob: written.blob })
        }))
    }

    async fn new_oids(&self, count: u32) -> Result<Vec<Oid>, RequestError> {
        let first = self.last_oid.get() + 1;
        self.last_oid.set(self.last_oid.get() + u64::from(count));
        Ok((first..first + u64::from(count)).map(Oid).collect())
    }
}

impl Writes for MemoryTxn<'_> {
    type Error = RequestError;

    async fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), RequestError> {
        self.writes.borrow_mut().insert(oid, (base, Written { data: Some(data), blob: None }));
        Ok(())
    }

    async fn store_file(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<BlobInfo, RequestError> {
        let bytes =
            std::fs::read(source).map_err(|error| RequestError::Source { detail: error.to_string() })?;
        progress(bytes.len() as u64);
        let blob = BlobInfo { size: bytes.len() as u64, digest: Digest(*blake3::hash(&bytes).as_bytes()) };
        self.writes.borrow_mut().insert(oid, (base, Written { data: Some(data), blob: Some(blob) }));
        Ok(blob)
    }

    async fn delete(&self, oid: Oid, base: Tid) -> Result<(), RequestError> {
        if base == Tid::ZERO {
            assert!(self.writes.borrow_mut().remove(&oid).is_some(), "nothing to take back of {oid}");
        } else {
            self.writes.borrow_mut().insert(oid, (base, Written { data: None, blob: None }));
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<Attempt, RequestError> {
        let memory = self.memory;
        memory.attempts.set(memory.attempts.get() + 1);
        let mut others = memory.before_commit.take();
        if let Some(act) = others.pop() {
            act(memory);
        }
        memory.before_commit.replace(others);
        let writes = self.writes.borrow();
        let conflicts: Vec<Conflict> = writes
            .iter()
            .map(|(oid, (base, ..))| Conflict { oid: *oid, committed: memory.current(*oid), base: *base })
            .filter(|conflict| conflict.base != conflict.committed)
            .collect();
        if !conflicts.is_empty() {
            return Ok(Attempt::Conflicts(conflicts));
        }
        let tid = Tid(memory.last_tid.get() + 1);
        memory.last_tid.set(tid.0);
        for (oid, (_, written)) in writes.iter() {
            let stored = Stored { tid, written: written.clone() };
            memory.revisions.borrow_mut().entry(*oid).or_default().push(stored);
        }
        Ok(Attempt::Committed(tid))
    }
}
