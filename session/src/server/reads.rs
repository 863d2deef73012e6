//! Requests that only look: answered on the thread that has heard of them where that is quick, or by a worker each.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::io::Source;
use blobferry_platform::os::FileStamp;
use blobferry_protocol::{BlobId, BlobInfo, Reply, Request, RequestError, RequestId};
use bytes::Bytes;

use crate::server::core::ServerCore;
use crate::server::inline_policy::WorkBudget;
use crate::server::mailbox::{Mailbox, Message};
use crate::server::verified::VerifiedFile;
use blobferry_store::OpenBlob;

/// Reads that workers make at once for one connection.
const READS: usize = 32;

/// The reads of one connection.
#[derive(Default)]
pub(super) struct Reads {
    /// Those that wait for their turn.
    waiting: VecDeque<(RequestId, Request)>,
    /// Those that run, or whose answer is in the mailbox.
    running: BTreeSet<RequestId>,
    /// Those of them whose answer is not wanted any more.
    cancelled: BTreeSet<RequestId>,
}

/// Where the next read is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    Here,
    Elsewhere,
    /// Not yet.
    Nowhere,
}

impl Reads {
    pub(super) fn push(&mut self, id: RequestId, read: Request) {
        self.waiting.push_back((id, read));
    }

    /// The answer is not wanted any more; whether it is to be said at once that there will be none.
    pub(super) fn cancel(&mut self, id: RequestId) -> bool {
        if self.running.contains(&id) {
            self.cancelled.insert(id);
            return false;
        }
        let at = self.waiting.iter().position(|(waits, _)| *waits == id);
        at.and_then(|at| self.waiting.remove(at)).is_some()
    }

    /// The answer is there; whether it was cancelled before.
    pub(super) fn answered(&mut self, id: RequestId) -> bool {
        self.running.remove(&id);
        self.cancelled.remove(&id)
    }

    /// Makes the next of those that wait. What is quick by its kind is made here, or in the next turn if this one is
    /// over; everything else elsewhere, as long as that is not too much at once.
    pub(super) fn make_next(
        &mut self,
        service: &ServerCore,
        mailbox: &Arc<Mailbox>,
        turn: &mut WorkBudget,
    ) -> Where {
        let Some((_, read)) = self.waiting.front() else { return Where::Nowhere };
        let quick = is_quick(read);
        let here = quick && turn.allows();
        if !here && (quick && turn.is_over() || self.running.len() >= READS) {
            return Where::Nowhere;
        }
        let Some((id, read)) = self.waiting.pop_front() else { return Where::Nowhere };
        self.running.insert(id);
        if here {
            turn.act(|| answer(service, mailbox, id, read));
            return Where::Here;
        }
        let (service, mailbox) = (service.clone(), mailbox.clone());
        let workers = service.workers().clone();
        workers.run(move || answer(&service, &mailbox, id, read));
        Where::Elsewhere
    }

    /// Whether the next one would be made here if this turn was not over.
    pub(super) fn wait_for_turn(&self, turn: &WorkBudget) -> bool {
        self.waiting.front().is_some_and(|(_, read)| is_quick(read)) && turn.is_over()
    }
}

/// Whether a read asks for one thing, that can be in memory.
fn is_quick(read: &Request) -> bool {
    matches!(
        read,
        Request::SendBlob { .. }
            | Request::Load { .. }
            | Request::LoadBefore { .. }
            | Request::LoadSerial { .. }
    )
}

/// A blob that is ready to be sent.
pub(super) struct Opened {
    pub(super) info: BlobInfo,
    /// The bytes to send; `None` where there are none.
    pub(super) source: Option<Source>,
    /// All of the blob, not a part.
    pub(super) whole: bool,
    /// What is known when all of it was sent.
    pub(super) proves: Option<VerifiedFile>,
}

/// Answers one request that changes nothing in a transaction.
fn answer(service: &ServerCore, mailbox: &Arc<Mailbox>, id: RequestId, request: Request) {
    let store = service.store();
    let result = match request {
        Request::SendBlob { blob, from, upto } => {
            return mailbox.post(Message::Opened { id, opened: open(service, blob, from, upto) });
        }
        Request::Outcome { txn } => {
            let mailbox = mailbox.clone();
            let tell = move |outcome: Result<_, _>| mailbox.reply(id, outcome.map(Reply::Outcome));
            return store.outcome(txn, Box::new(tell));
        }
        Request::Load { oid } => store.load(oid).map(Reply::Revision),
        Request::LoadBefore { oid, before } => store.load_before(oid, before).map(Reply::RevisionBefore),
        Request::LoadSerial { oid, tid } => store.load_serial(oid, tid).map(Reply::Revision),
        Request::History { oid, limit } => store.history(oid, limit).map(Reply::History),
        Request::NewOids { count } => {
            store.new_oids(count.max(1)).map(|(first, count)| Reply::Oids { first, count })
        }
        Request::Status => Ok(Reply::Status(service.status())),
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

fn open(service: &ServerCore, blob: BlobId, from: u64, upto: u64) -> Result<Opened, RequestError> {
    let open = service.store().open_blob(blob).inspect_err(|error| service.counters().damage(error))?;
    let info = match &open {
        OpenBlob::Small { info, .. } | OpenBlob::File { info, .. } => *info,
    };
    let size = info.size;
    let end = upto.min(size);
    if from > end {
        return Err(RequestError::BadRange { blob, size, from, upto });
    }
    let whole = from == 0 && end == size;
    let mut proves = None;
    let source = (from < end).then(|| match open {
        OpenBlob::Small { bytes, .. } => Source::memory(Bytes::from(bytes), end),
        OpenBlob::File { file, path, .. } => {
            // Who has asked for a part only has the rest already, and checks the whole.
            let stamp = FileStamp::of(&file).ok().filter(|_| whole);
            let proof = stamp.map(|stamp| VerifiedFile { oid: blob.oid, digest: info.digest, stamp });
            let proven = proof.is_some_and(|proof| service.proofs().hold(proof));
            proves = proof.filter(|_| !proven);
            let source = Source::file(file, end).kept(blob, path);
            if whole && !proven { source.expecting(info.digest) } else { source }
        }
    });
    Ok(Opened { info, source, whole, proves })
}
