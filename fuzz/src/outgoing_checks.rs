//! Checks what a machine sends, as its peer sees it.
//!
//! Whatever the machine has received, it sends valid messages, within the limits and the credit
//! that its peer gave.

use std::collections::{BTreeMap, BTreeSet};

use blobferry_protocol::wire;
use blobferry_protocol::wire::LENGTH_BYTES;
use blobferry_protocol::{Limits, Message, RequestId, Slice, TransferId};

/// What a machine has sent so far.
#[derive(Debug)]
pub(crate) struct OutgoingChecks {
    /// The limits of the peer.
    limits: Limits,
    transfers: BTreeMap<TransferId, Flow>,
    begun: BTreeSet<TransferId>,
    /// The credit that the machine was given, and how much of it is used.
    credits: BTreeMap<TransferId, u64>,
    credit: u64,
    used: u64,
    /// The credit that the machine has given.
    given: BTreeMap<TransferId, u64>,
    all_given: u64,
    answered: BTreeSet<RequestId>,
    asked: Option<RequestId>,
    handshakes: u32,
}

/// A blob that the machine sends.
#[derive(Debug)]
struct Flow {
    next: u64,
    end: u64,
    window: u64,
}

impl OutgoingChecks {
    pub(crate) fn new(limits: Limits) -> OutgoingChecks {
        OutgoingChecks {
            limits,
            transfers: BTreeMap::new(),
            begun: BTreeSet::new(),
            credits: BTreeMap::new(),
            credit: limits.connection_window,
            used: 0,
            given: BTreeMap::new(),
            all_given: 0,
            answered: BTreeSet::new(),
            asked: None,
            handshakes: 0,
        }
    }

    /// Sets the limits that the peer has announced.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.credit = limits.connection_window;
    }

    /// Records credit that the peer gave. The transfer may not have started yet.
    pub(crate) fn credit(&mut self, transfer: TransferId, upto: u64) {
        let credit = self.credits.entry(transfer).or_default();
        *credit = upto.max(*credit);
    }

    pub(crate) fn connection_credit(&mut self, upto: u64) {
        self.credit = upto.max(self.credit);
    }

    /// Returns the last credit that the machine gave, for each transfer and for the connection.
    pub(crate) fn given(&self) -> (&BTreeMap<TransferId, u64>, u64) {
        (&self.given, self.all_given)
    }

    /// Checks a run of frames, and the payload that follows it.
    pub(crate) fn check(&mut self, head: &[u8], body: Option<Slice>) {
        let mut rest = head;
        let mut last = None;
        while !rest.is_empty() {
            let (length, frames) = rest.split_first_chunk::<LENGTH_BYTES>().expect("frames are whole");
            let len = u32::from_le_bytes(*length);
            let (frame, more) = frames.split_at_checked(len as usize).expect("frames are whole");
            let message = wire::decode(frame).expect("what is sent is a message");
            let long = [3, 4, 5, 9].contains(&frame[0]);
            let most = if long { self.limits.frame } else { Limits::SMALL_FRAME };
            assert!(len <= most, "a frame of {len} bytes where {most} are allowed");
            self.message(&message);
            assert!(
                more.is_empty() || !matches!(message, Message::BlobChunk { .. }),
                "payload follows at once"
            );
            (rest, last) = (more, Some(message));
        }
        let expected = match last {
            Some(Message::BlobChunk { transfer, offset, len }) => {
                Some(Slice { transfer, offset, len: len.into() })
            }
            _ => None,
        };
        assert_eq!(body, expected);
    }

    fn message(&mut self, message: &Message) {
        match message {
            Message::Hello(_) | Message::Welcome(_) | Message::Refuse(_) => {
                self.handshakes += 1;
                assert_eq!(self.handshakes, 1, "there is one handshake");
            }
            Message::Request { id, .. } => {
                assert!(Some(*id) > self.asked, "requests are numbered in order");
                self.asked = Some(*id);
            }
            Message::Reply { id, .. } => {
                assert!(self.answered.insert(*id), "{id:?} is answered twice");
                assert!(!self.begun.contains(&TransferId::from(*id)), "{id:?} is answered with a blob");
            }
            Message::BlobStart { transfer, from, end, size, .. } => {
                assert!(from <= end && end <= size, "{message:?}");
                assert!(self.begun.insert(*transfer), "{transfer:?} begins twice");
                assert!(!self.answered.contains(&RequestId::from(*transfer)), "{transfer:?} was answered");
                let window = from.saturating_add(self.limits.transfer_window);
                self.transfers.insert(*transfer, Flow { next: *from, end: *end, window });
                assert!(self.transfers.len() <= self.limits.transfers as usize);
            }
            Message::BlobChunk { transfer, offset, len } => self.chunk(*transfer, *offset, *len),
            Message::BlobStop { transfer, .. } => {
                let flow = self.transfers.remove(transfer).expect("a blob under way");
                assert_eq!(flow.next, flow.end, "{transfer:?} stops at its end");
            }
            Message::BlobAbort { transfer, .. } => {
                assert!(self.transfers.remove(transfer).is_some(), "{transfer:?} is not under way");
            }
            Message::Credit { transfer, upto } => {
                let before = self.given.insert(*transfer, *upto);
                assert!(before < Some(*upto), "credit for {transfer:?}: {upto} after {before:?}");
            }
            Message::ConnectionCredit { upto } => {
                assert!(*upto > self.all_given, "credit: {upto} after {}", self.all_given);
                self.all_given = *upto;
            }
            Message::Invalidate { .. }
            | Message::Cancel { .. }
            | Message::Ping { .. }
            | Message::Pong { .. }
            | Message::Goodbye => {}
        }
    }

    fn chunk(&mut self, transfer: TransferId, offset: u64, len: u32) {
        let flow = self.transfers.get_mut(&transfer).expect("a blob under way");
        assert_eq!(flow.next, offset, "{transfer:?} goes on where it was");
        assert!(0 < len && len <= self.limits.chunk, "a chunk of {len} bytes");
        flow.next = offset + u64::from(len);
        self.used += u64::from(len);
        let credit = self.credits.get(&transfer).copied().unwrap_or(0).max(flow.window);
        assert!(flow.next <= flow.end.min(credit), "{transfer:?} goes too far");
        assert!(self.used <= self.credit, "{} bytes, where {} are allowed", self.used, self.credit);
    }
}
