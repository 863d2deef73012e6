//! Requests that only look: each is answered on a thread of its own.

use std::sync::Arc;

use blobferry_cache::carry::{Source, Stamp};
use blobferry_protocol::{BlobId, BlobInfo, Reply, Request, RequestError, RequestId};
use bytes::Bytes;

use super::mailbox::{Mailbox, News};
use super::proofs::Proof;
use super::service::Service;
use crate::OpenBlob;

/// A blob that is ready to be sent.
pub(super) struct Opened {
    pub(super) info: BlobInfo,
    /// The bytes to send; `None` where there are none.
    pub(super) source: Option<Source>,
    /// All of the blob, not a part.
    pub(super) whole: bool,
    /// What is known when all of it was sent.
    pub(super) proves: Option<Proof>,
}

/// Answers one request that changes nothing in a transaction.
pub(super) fn answer(service: &Service, mailbox: Arc<Mailbox>, id: RequestId, request: Request) {
    let store = service.store();
    let result = match request {
        Request::SendBlob { blob, from, upto } => {
            return mailbox.post(News::Opened { id, opened: open(service, blob, from, upto) });
        }
        Request::Outcome { txn } => {
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

fn open(service: &Service, blob: BlobId, from: u64, upto: u64) -> Result<Opened, RequestError> {
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
            let stamp = Stamp::of(&file).ok().filter(|_| whole);
            let proof = stamp.map(|stamp| Proof { oid: blob.oid, digest: info.digest, stamp });
            let proven = proof.is_some_and(|proof| service.proofs().hold(proof));
            proves = proof.filter(|_| !proven);
            let source = Source::file(file, end).kept(blob, path);
            if whole && !proven { source.expecting(info.digest) } else { source }
        }
    });
    Ok(Opened { info, source, whole, proves })
}
