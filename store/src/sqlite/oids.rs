//! Allocates oids: from memory, out of ranges that are reserved on disk.

use blobferry_protocol::{Oid, RequestError};

use crate::backend::no_oids_left;
use crate::sqlite::database::Database;
use crate::sqlite::schema::key;

/// The oids that are reserved at once. Those left over when the server stops are never used.
const STEP: u64 = 1 << 20;

/// The oids up to `reserved` can be allocated without a write to the disk.
#[derive(Debug)]
pub(crate) struct Oids {
    /// The last oid that was allocated or used.
    last: u64,
    reserved: u64,
}

impl Oids {
    /// Starts behind `last`, the last oid that was allocated, used or reserved.
    pub(super) fn after(last: u64) -> Oids {
        Oids { last, reserved: last }
    }

    /// Notes that a commit has used oids up to `last`, allocated or not.
    pub(super) fn note_used(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// Allocates `count` consecutive oids, and returns the first.
    pub(super) fn allocate(&mut self, count: u32, database: &Database) -> Result<Oid, RequestError> {
        let last = self.last.checked_add(count.into()).ok_or_else(no_oids_left)?;
        if last > self.reserved {
            self.reserved = database.with_writer(|writer| {
                let reserved = writer.last_oid.max(last.saturating_add(STEP));
                let transaction = database.begin(&mut writer.connection)?;
                transaction
                    .execute("UPDATE state SET last_oid = ?1", [key(reserved)])
                    .map_err(|error| database.error("reserve oids", &error))?;
                database.commit(transaction)?;
                writer.last_oid = reserved;
                Ok(reserved)
            })?;
        }
        let first = self.last + 1;
        self.last = last;
        Ok(Oid(first))
    }
}
