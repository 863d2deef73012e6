//! Requests that change nothing. A quick one is answered on the thread that received it, any other on the pool.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use blobferry_platform::os::FileStamp;
use blobferry_protocol::{BlobId, Reply, Request, RequestError, RequestId};
use blobferry_store::OpenBlob;
use bytes::Bytes;

use crate::io::Source;
use crate::server::core::ServerCore;
use crate::server::inline_policy::WorkBudget;
use crate::server::mailbox::Mailbox;
use crate::server::message::{Message, Opened};
use crate::server::verified::VerifiedFile;

/// Reads of one connection that run on the pool at once, at most.
const MAX_RUNNING: usize = 32;

/// The reads of one connection.
#[derive(Default)]
pub(super) struct Reads {
    /// The reads that wait to be started.
    waiting: VecDeque<(RequestId, Request)>,
    /// The reads that run, or whose answer is in the mailbox.
    running: BTreeSet<RequestId>,
    /// The running reads that were cancelled.
    cancelled: BTreeSet<RequestId>,
}

/// How the next read was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    /// On this thread; the answer is in the mailbox.
    Inline,
    /// On a thread of the pool.
    OnPool,
    /// None was started.
    No,
}

impl Reads {
    /// Queues a read.
    pub(super) fn push(&mut self, id: RequestId, read: Request) {
        self.waiting.push_back((id, read));
    }

    /// Cancels a read. Returns whether it was waiting, so that the caller must answer it now.
    pub(super) fn cancel(&mut self, id: RequestId) -> bool {
        if self.running.contains(&id) {
            self.cancelled.insert(id);
            return false;
        }
        let at = self.waiting.iter().position(|(waits, _)| *waits == id);
        at.and_then(|at| self.waiting.remove(at)).is_some()
    }

    /// Notes that a read is answered. Returns whether it was cancelled before.
    pub(super) fn answered(&mut self, id: RequestId) -> bool {
        self.running.remove(&id);
        self.cancelled.remove(&id)
    }

    /// Starts the next waiting read. A quick one runs inline, or waits for the next turn if the budget of this one is
    /// spent. Any other runs on the pool, unless [`MAX_RUNNING`] reads run there already.
    pub(super) fn start_next(
        &mut self,
        core: &ServerCore,
        mailbox: &Arc<Mailbox<Message>>,
        budget: &mut WorkBudget,
    ) -> Started {
        let Some((_, read)) = self.waiting.front() else { return Started::No };
        let quick = is_quick(read);
        let inline = quick && budget.allows();
        if !inline && (quick && budget.is_over() || self.running.len() >= MAX_RUNNING) {
            return Started::No;
        }
        let Some((id, read)) = self.waiting.pop_front() else { return Started::No };
        self.running.insert(id);
        if inline {
            budget.run(|| answer(core, mailbox, id, read));
            return Started::Inline;
        }
        let (core, mailbox) = (core.clone(), mailbox.clone());
        let workers = core.workers().clone();
        workers.run(move || answer(&core, &mailbox, id, read));
        Started::OnPool
    }

    /// Returns whether the next read only waits for the next turn.
    pub(super) fn wait_for_turn(&self, budget: &WorkBudget) -> bool {
        self.waiting.front().is_some_and(|(_, read)| is_quick(read)) && budget.is_over()
    }
}

/// Returns whether a read is for one thing that can be in memory.
fn is_quick(read: &Request) -> bool {
    matches!(
        read,
        Request::SendBlob { .. }
            | Request::Load { .. }
            | Request::LoadBefore { .. }
            | Request::LoadSerial { .. }
    )
}

/// Answers one request that changes nothing in a transaction.
fn answer(core: &ServerCore, mailbox: &Arc<Mailbox<Message>>, id: RequestId, request: Request) {
    let store = core.store();
    let result = match request {
        Request::SendBlob { blob, from, upto } => {
            return mailbox.post(Message::Opened { id, opened: open(core, blob, from, upto) });
        }
        Request::Outcome { txn } => {
            let mailbox = mailbox.clone();
            let reply = move |outcome: Result<_, _>| mailbox.reply(id, outcome.map(Reply::Outcome));
            return store.outcome(txn, Box::new(reply));
        }
        Request::Load { oid } => store.load(oid).map(Reply::Revision),
        Request::LoadBefore { oid, before } => store.load_before(oid, before).map(Reply::RevisionBefore),
        Request::LoadSerial { oid, tid } => store.load_serial(oid, tid).map(Reply::Revision),
        Request::History { oid, limit } => store.history(oid, limit).map(Reply::History),
        Request::NewOids { count } => {
            store.new_oids(count.max(1)).map(|(first, count)| Reply::Oids { first, count })
        }
        Request::Status => Ok(Reply::Status(core.status())),
        Request::Pack { before } => store.pack(before).map(Reply::Packed),
        Request::Begin { .. }
        | Request::Store { .. }
        | Request::StoreBlob { .. }
        | Request::StoreShared { .. }
        | Request::Delete { .. }
        | Request::Vote { .. }
        | Request::Finish { .. }
        | Request::Commit { .. }
        | Request::Abort { .. }
        | Request::Attach { .. } => {
            Err(RequestError::Unsupported { what: "this outside of a transaction".into() })
        }
    };
    mailbox.reply(id, result);
}

fn open(core: &ServerCore, blob: BlobId, from: u64, upto: u64) -> Result<Opened, RequestError> {
    let open = core.store().open_blob(blob).inspect_err(|error| core.counters().damage(error))?;
    let info = match &open {
        OpenBlob::Small { info, .. } | OpenBlob::File { info, .. } => *info,
    };
    let size = info.size;
    let end = upto.min(size);
    if from > end {
        return Err(RequestError::BadRange { blob, size, from, upto });
    }
    let is_whole = from == 0 && end == size;
    let mut verifies = None;
    let source = (from < end).then(|| match open {
        OpenBlob::Small { bytes, .. } => Source::memory(Bytes::from(bytes), end),
        OpenBlob::File { file, path, .. } => {
            // A client that requests a part has the rest already, and checks the whole.
            let stamp = FileStamp::of(&file).ok().filter(|_| is_whole);
            let verified = stamp.map(|stamp| VerifiedFile { oid: blob.oid, digest: info.digest, stamp });
            let is_known = verified.is_some_and(|file| core.verified().contains(file));
            verifies = verified.filter(|_| !is_known);
            let source = Source::file(file, end).stored(blob, path);
            if is_whole && !is_known { source.expecting(info.digest) } else { source }
        }
    });
    Ok(Opened { info, source, is_whole, verifies })
}
