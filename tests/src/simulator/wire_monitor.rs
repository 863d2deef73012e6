//! Reads a connection along with both ends, and checks rules that one end alone cannot check.
//!
//! * No payload exceeds the credit, and no credit exceeds what was sent by more than one window.
//! * Requests have ascending numbers. Every request is answered once, and no other number is
//!   answered.
//! * Invalidations are in the order of commits, and before any answer that exposes the commit.

use std::collections::{BTreeMap, BTreeSet};

use blobferry_protocol::{Limits, Message, Outcome, Reply, Request, RequestId, Tid, TransferId, wire};

/// The monitor of a connection.
#[derive(Debug, Default)]
pub(super) struct WireMonitor {
    client: Side,
    server: Side,
    /// The requests that are not answered yet, and whether each is a commit.
    unanswered: BTreeMap<RequestId, bool>,
    last_request: RequestId,
    announced: Tid,
    /// The messages since the last look at the trace, if it was requested. Only for the trace.
    pub(super) transcript: Option<Vec<String>>,
    pub(super) counts: Counts,
}

/// What a connection has transported.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) messages: u64,
    pub(super) payload: u64,
    pub(super) resumed: u64,
    pub(super) attached: u64,
}

/// What one side has sent.
#[derive(Debug, Default)]
struct Side {
    unread: Vec<u8>,
    /// The number of payload bytes still to come.
    payload: u64,
    limits: Option<Limits>,
    /// The transfers that this side sends, with what was sent and what may be sent.
    transfers: BTreeMap<TransferId, Flow>,
    all: Flow,
    over: BTreeSet<TransferId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    sent: u64,
    allowed: u64,
}

impl WireMonitor {
    /// Reads the bytes that one side sends. Returns an error if they break a rule.
    pub(super) fn observe(&mut self, from_client: bool, bytes: &[u8]) -> Result<(), String> {
        let mut unread = std::mem::take(&mut self.side(from_client).unread);
        unread.extend_from_slice(bytes);
        let mut rest = unread.as_slice();
        loop {
            let side = self.side(from_client);
            let skipped = rest.len().min(usize::try_from(side.payload).unwrap_or(usize::MAX));
            side.payload -= skipped as u64;
            rest = rest.get(skipped..).unwrap_or_default();
            let Some((length, body)) = rest.split_first_chunk() else { break };
            let Some((body, after)) = body.split_at_checked(u32::from_le_bytes(*length) as usize) else {
                break;
            };
            let message =
                wire::decode(body).map_err(|error| format!("what was sent is no message: {error}"))?;
            rest = after;
            self.counts.messages += 1;
            if let Some(transcript) = &mut self.transcript {
                let by = if from_client { "client" } else { "server" };
                let whole = format!("{by}: {message:?}");
                transcript.push(whole.chars().take(160).collect());
            }
            self.message(from_client, message)?;
        }
        self.side(from_client).unread = rest.to_vec();
        Ok(())
    }

    /// Returns whether a request is unanswered.
    pub(super) fn is_busy(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Returns whether a commit is unanswered.
    pub(super) fn is_committing(&self) -> bool {
        self.unanswered.values().any(|commits| *commits)
    }

    fn side(&mut self, is_client: bool) -> &mut Side {
        if is_client { &mut self.client } else { &mut self.server }
    }

    fn message(&mut self, by_client: bool, message: Message) -> Result<(), String> {
        match message {
            Message::Hello(hello) => {
                self.client.limits = Some(hello.limits);
                self.server.all.allowed = hello.limits.connection_window;
            }
            Message::Welcome(welcome) => {
                self.server.limits = Some(welcome.limits);
                self.client.all.allowed = welcome.limits.connection_window;
                self.announced = welcome.last_tid;
            }
            Message::Request { id, request } => {
                if id <= self.last_request {
                    return Err(format!("request {id:?} comes behind request {:?}", self.last_request));
                }
                self.last_request = id;
                if let Request::SendBlob { from, .. } = request
                    && from > 0
                {
                    self.counts.resumed += 1;
                }
                self.unanswered
                    .insert(id, matches!(request, Request::Finish { .. } | Request::Commit { .. }));
            }
            Message::Reply { id, result } => {
                if self.unanswered.remove(&id).is_none() {
                    return Err(format!("the server answers {id:?}, which was not requested, or again"));
                }
                self.check_exposed(&result)?;
                self.counts.attached += u64::from(matches!(result, Ok(Reply::Attached { .. })));
            }
            Message::Invalidate { tid, .. } => {
                if tid <= self.announced {
                    return Err(format!("the invalidation of {tid} comes behind {}", self.announced));
                }
                self.announced = tid;
            }
            Message::BlobStart { transfer, from, .. } => {
                let window = self.side(!by_client).limits.map_or(0, |limits| limits.transfer_window);
                let side = self.side(by_client);
                if side.over.contains(&transfer) {
                    return Err(format!("{transfer:?} begins again"));
                }
                let flow = Flow { sent: from, allowed: from.saturating_add(window) };
                side.transfers.insert(transfer, flow);
                self.counts.resumed += u64::from(by_client && from > 0);
            }
            Message::BlobChunk { transfer, offset, len } => {
                let side = self.side(by_client);
                side.payload = u64::from(len);
                side.all.sent += u64::from(len);
                let flow = side.transfers.entry(transfer).or_default();
                flow.sent = offset + u64::from(len);
                if flow.sent > flow.allowed || side.all.sent > side.all.allowed {
                    return Err(format!(
                        "{transfer:?}: sent up to {} where {} was allowed, and {} of {} in all",
                        flow.sent, flow.allowed, side.all.sent, side.all.allowed
                    ));
                }
                self.counts.payload += u64::from(len);
            }
            Message::BlobStop { transfer, .. } | Message::BlobAbort { transfer, .. } => {
                self.side(by_client).transfers.remove(&transfer);
                self.side(by_client).over.insert(transfer);
                if !by_client && self.unanswered.remove(&transfer.into()).is_none() {
                    return Err(format!("the server ends {transfer:?}, which was not requested, or again"));
                }
            }
            Message::Credit { transfer, upto } => self.allow(by_client, Some(transfer), upto)?,
            Message::ConnectionCredit { upto } => self.allow(by_client, None, upto)?,
            Message::Refuse(_)
            | Message::Cancel { .. }
            | Message::Ping { .. }
            | Message::Pong { .. }
            | Message::Goodbye => {}
        }
        Ok(())
    }

    /// Records credit that a receiver gives.
    fn allow(&mut self, by_client: bool, transfer: Option<TransferId>, upto: u64) -> Result<(), String> {
        let limits = self.side(by_client).limits.unwrap_or_default();
        let sender = self.side(!by_client);
        let (flow, window) = match transfer {
            // The transfer may have ended meanwhile.
            Some(transfer) => match sender.transfers.get_mut(&transfer) {
                Some(flow) => (flow, limits.transfer_window),
                None => return Ok(()),
            },
            None => (&mut sender.all, limits.connection_window),
        };
        if upto > flow.sent.saturating_add(window) {
            return Err(format!(
                "credit up to {upto} for {transfer:?}, of which {} was sent, with a window of {window}",
                flow.sent
            ));
        }
        flow.allowed = flow.allowed.max(upto);
        Ok(())
    }

    fn check_exposed<E>(&self, result: &Result<Reply, E>) -> Result<(), String> {
        let tid = match result {
            Ok(Reply::Revision(revision) | Reply::RevisionBefore(Some(revision))) => revision.tid,
            Ok(Reply::Finished { tid } | Reply::Outcome(Outcome::Committed { tid })) => *tid,
            Ok(Reply::History(history)) => history.first().map_or(Tid::ZERO, |entry| entry.tid),
            _ => return Ok(()),
        };
        match tid <= self.announced {
            true => Ok(()),
            false => Err(format!(
                "an answer exposes {tid}, and the invalidations have come to {} only",
                self.announced
            )),
        }
    }
}
