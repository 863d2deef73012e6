//! Committing an edit, and merging it with what others commit meanwhile.
//!
//! The transaction is tried on the directories as the user saw them. Where others were faster, the server tells the
//! objects that they changed. If one of them is a file of this transaction, that is for people to resolve. If they
//! are all parts of directories, the edit is applied to the directories as they are now, in the same transaction
//! (what was uploaded stays uploaded), and it is tried again.

use std::collections::BTreeMap;

use blobferry_protocol::{Conflict, Oid, Tid};

use super::edit::Edit;
use super::error::CatalogError;
use super::objects::{Attempt, Objects, Writes};
use super::plan::{OidPool, Plan, Write, plan};
use super::view::View;
use crate::concurrent::{REQUESTS, each};

/// How often it is tried. Every failure means that somebody else has succeeded.
const ATTEMPTS: u32 = 32;

/// Commits `txn`, in which the edit's files are stored already, with the directories changed as the edit says.
///
/// `view` is what the edit was made from.
///
/// # Errors
/// [`CatalogError::Conflict`] for what only people can resolve; [`CatalogError::Contention`] where others were faster
/// every time. Nothing is changed then.
pub(crate) async fn commit<'a, O: Objects, W: Writes>(
    view: View<'a, O>,
    txn: &mut W,
    edit: &Edit,
) -> Result<Tid, CatalogError> {
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
        let for_people = edit.conflicts(&conflicts);
        if !for_people.is_empty() {
            return Err(CatalogError::Conflict(for_people));
        }
        view = View::upto(objects, newest(objects.last_tid(), &conflicts));
    }
    Err(CatalogError::Contention { attempts: ATTEMPTS })
}

fn newest(last: Tid, conflicts: &[Conflict]) -> Tid {
    conflicts.iter().map(|conflict| conflict.committed).fold(last, Tid::max)
}

/// What the transaction holds at the server beside the files: only marks, because the records may be many.
#[derive(Default)]
struct Stored(BTreeMap<Oid, Mark>);

type Mark = (Tid, Option<blake3::Hash>);

fn mark(write: &Write) -> Mark {
    (write.base, write.data.as_deref().map(blake3::hash))
}

impl Stored {
    /// Makes the transaction hold exactly what the plan says.
    async fn become_plan<W: Writes>(&mut self, plan: Plan, txn: &W) -> Result<(), CatalogError> {
        let dropped = self.0.keys().filter(|oid| !plan.contains_key(oid)).copied();
        let taken_back = Write { base: Tid::ZERO, data: None };
        let mut writes: Vec<(Oid, Write)> = dropped.map(|oid| (oid, taken_back.clone())).collect();
        writes.extend(plan);
        writes.retain(|(oid, write)| self.0.get(oid) != Some(&mark(write)));
        for (oid, write) in &writes {
            if write.base == Tid::ZERO && write.data.is_none() {
                self.0.remove(oid);
            } else {
                self.0.insert(*oid, mark(write));
            }
        }
        each(REQUESTS, writes, |(oid, write)| async move {
            match write.data {
                Some(data) => txn.store(oid, write.base, data).await,
                None => txn.delete(oid, write.base).await,
            }
        })
        .await?;
        Ok(())
    }
}
