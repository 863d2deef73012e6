//! Oids that were never used: given from memory, and set aside on the disk many at a time.

use blobferry_protocol::{Oid, RequestError};

use crate::backend::no_oids_left;
use crate::sqlite::database::Database;
use crate::sqlite::schema::key;

/// So many are set aside at once. What is left of them when the server stops is lost: there are plenty.
const STEP: u64 = 1 << 20;

/// Unused oids in memory: those up to `reserved` may be given without asking the disk.
#[derive(Debug)]
pub(crate) struct Oids {
    /// The last that was given or used.
    last: u64,
    reserved: u64,
}

impl Oids {
    /// Oids behind `last`, the last one that was given, used or set aside.
    pub(super) fn after(last: u64) -> Oids {
        Oids { last, reserved: last }
    }

    /// Notes that oids up to one were used, though perhaps never given.
    pub(super) fn note_used(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// Gives oids that follow on each other: the first of them.
    pub(super) fn give(&mut self, count: u32, database: &Database) -> Result<Oid, RequestError> {
        let last = self.last.checked_add(count.into()).ok_or_else(no_oids_left)?;
        if last > self.reserved {
            self.reserved = database.with_writer(|writer| {
                let reserved = writer.last_oid.max(last.saturating_add(STEP));
                let transaction = database.begin(&mut writer.connection)?;
                transaction
                    .execute("UPDATE state SET last_oid = ?1", [key(reserved)])
                    .map_err(|error| database.error("set oids aside", &error))?;
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
