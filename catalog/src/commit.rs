//! Committing an edit, and merging it with what other transactions commit at the same time.
//!
//! [`commit`] first applies the edit to the directories of its view. If another transaction was
//! faster, the server returns the objects in conflict. A conflict about a file of this transaction
//! is returned to the caller. If all conflicts are about directories, [`commit`] applies the edit
//! to the current directories, in the same transaction, and tries again. Blobs that were stored
//! before stay stored.

use std::collections::BTreeMap;

use blobferry_protocol::{Conflict, Oid, Tid};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::REQUESTS;
use crate::edit::Edit;
use crate::error::CatalogError;
use crate::objects::{Attempt, Objects, Writes};
use crate::plan::{OidPool, Plan, Write, plan};
use crate::view::View;

/// The number of attempts to commit. Every failed attempt means that another transaction succeeded.
const ATTEMPTS: u32 = 32;

/// Commits `txn`, with the directories changed as the edit says, and returns its transaction id.
///
/// The caller has stored the edit's files in `txn` before. `view` is the view that the edit was
/// made from.
///
/// # Errors
/// [`CatalogError::Conflict`] if another transaction has changed the same files;
/// [`CatalogError::Contention`] if other transactions changed the same directories before each of
/// 32 attempts. Nothing is changed then.
pub async fn commit<'a, O: Objects, W: Writes<Error = O::Error>>(
    view: View<'a, O>,
    txn: &mut W,
    edit: &Edit,
) -> Result<Tid, CatalogError<O::Error>> {
    let objects = view.objects();
    let mut view = view;
    let mut oids = OidPool::new(objects);
    let mut stored = Stored::default();
    for _ in 0..ATTEMPTS {
        let plan = plan(&view, edit, &mut oids).await?;
        stored.become_plan(plan, txn).await?;
        let conflicts = match txn.commit().await? {
            Attempt::Committed(tid) => return Ok(tid),
            Attempt::Conflicts(conflicts) => conflicts,
        };
        let about_files = edit.conflicts(&conflicts);
        if !about_files.is_empty() {
            return Err(CatalogError::Conflict(about_files));
        }
        view = View::upto(objects, newest(objects.last_tid(), &conflicts));
    }
    Err(CatalogError::Contention { attempts: ATTEMPTS })
}

fn newest(last: Tid, conflicts: &[Conflict]) -> Tid {
    conflicts.iter().map(|conflict| conflict.committed).fold(last, Tid::max)
}

/// What the transaction holds at the server beside the files. It keeps fingerprints, because
/// records may be many.
#[derive(Default)]
struct Stored(BTreeMap<Oid, Fingerprint>);

type Fingerprint = (Tid, Option<blake3::Hash>);

fn fingerprint(write: &Write) -> Fingerprint {
    (write.base, write.data.as_deref().map(blake3::hash))
}

impl Stored {
    /// Makes the transaction hold exactly what the plan says.
    async fn become_plan<W: Writes>(&mut self, plan: Plan, txn: &W) -> Result<(), W::Error> {
        let dropped = self.0.keys().filter(|oid| !plan.contains_key(oid)).copied();
        let taken_back = Write { base: Tid::ZERO, data: None };
        let mut writes: Vec<(Oid, Write)> = dropped.map(|oid| (oid, taken_back.clone())).collect();
        writes.extend(plan);
        writes.retain(|(oid, write)| self.0.get(oid) != Some(&fingerprint(write)));
        for (oid, write) in &writes {
            if write.base == Tid::ZERO && write.data.is_none() {
                self.0.remove(oid);
            } else {
                self.0.insert(*oid, fingerprint(write));
            }
        }
        let sent = stream::iter(writes).map(|(oid, write)| async move {
            match write.data {
                Some(data) => txn.store(oid, write.base, data).await,
                None => txn.delete(oid, write.base).await,
            }
        });
        sent.buffer_unordered(REQUESTS).try_collect().await
    }
}
