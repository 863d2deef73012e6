//! Oids that were never used: given from memory, and set aside on the disk many at a time.

use blobferry_protocol::{Oid, RequestError};

use crate::backend::no_oids_left;
use crate::sqlite::Disk;
use crate::sqlite::schema::key;
use crate::transactions::table::Work;

/// So many are set aside at once. What is left of them when the server stops is lost: there are plenty.
const STEP: u64 = 1 << 20;

/// Unused oids in memory: those up to `reserved` may be given without asking the disk.
#[derive(Debug)]
pub(crate) struct Oids {
    /// The last that was given or used.
    pub(super) last: u64,
    pub(super) reserved: u64,
}

impl Disk {
    /// Notes that oids were used that were never given. Returns the highest of the batch.
    pub(super) fn use_oids(&self, batch: &[Work]) -> u64 {
        let last = batch.iter().filter_map(|work| match work {
            Work::Commit { changes, .. } => changes.lock().last_oid(),
            Work::Fence(_) => None,
        });
        let last = last.max().map_or(0, |oid| oid.0);
        let mut oids = self.oids.lock();
        oids.last = oids.last.max(last);
        last
    }

    /// Gives oids that follow on each other: the first of them.
    pub(super) fn give_oids(&self, count: u32) -> Result<Oid, RequestError> {
        let mut oids = self.oids.lock();
        let last = oids.last.checked_add(count.into()).ok_or_else(no_oids_left)?;
        if last > oids.reserved {
            oids.reserved = self.database.with_writer(|writer| {
                let reserved = writer.last_oid.max(last.saturating_add(STEP));
                let transaction = self.database.begin(&mut writer.connection)?;
                transaction
                    .execute("UPDATE state SET last_oid = ?1", [key(reserved)])
                    .map_err(|error| self.database.error("set oids aside", &error))?;
                self.database.commit(transaction)?;
                writer.last_oid = reserved;
                Ok(reserved)
            })?;
        }
        let first = oids.last + 1;
        oids.last = last;
        Ok(Oid(first))
    }
}
