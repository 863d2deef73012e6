//! One end of a simulated connection: the connection, and the sources and sinks of its blobs.

use std::collections::{BTreeMap, VecDeque};
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use crate::buffered;
use crate::connection::{Connection, Expect, Side, Slice, TransferEvent};
use crate::error::PeerError;
use crate::ids::{Digest, TransferId};
use crate::message::RequestError;
use crate::testing::link::Wire;
use crate::time::Time;

/// How an end moves payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Through buffers, with [`buffered`](crate::buffered).
    #[default]
    Buffered,
    /// As with `splice`: reads at most as many control bytes as [`Expect::Control`] says, and moves
    /// payload separately.
    Splicing,
}

/// Returns a digest for tests, which differs between two blobs. It is not BLAKE3: connections never
/// compute digests.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    let mut state = [0xcbf2_9ce4_8422_2325_u64, 1, 2, bytes.len() as u64];
    for byte in bytes {
        for word in &mut state {
            *word = (word.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let mut digest = [0; 32];
    for (place, word) in digest.chunks_exact_mut(8).zip(state) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    Digest(digest)
}

/// The source of an outgoing blob.
#[derive(Clone, Debug)]
pub struct Source {
    /// All bytes of the blob.
    pub bytes: Vec<u8>,
    /// If true, the digest is set when all bytes have been read, not before.
    pub digest_at_end: bool,
    /// A read of a slice that reaches beyond this offset fails.
    pub fails_at: Option<u64>,
}

impl Source {
    /// Returns a source that does not fail, and whose digest is known.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Source {
        Source { bytes: bytes.to_vec(), digest_at_end: false, fails_at: None }
    }

    fn read(&self, slice: Slice, into: &mut Vec<u8>) -> Result<(), RequestError> {
        let end = slice.offset + slice.len;
        let bytes = self.bytes.get(slice.offset as usize..end as usize);
        match bytes.filter(|_| self.fails_at.is_none_or(|offset| end <= offset)) {
            Some(bytes) => into.extend_from_slice(bytes),
            None => return Err(RequestError::Source { detail: "the source of a test fails".to_string() }),
        }
        Ok(())
    }
}

/// The sink of an incoming blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// The offset of its first byte in the blob.
    pub from: u64,
    /// The offset behind the last byte that was announced.
    pub end: u64,
    /// The size of the whole blob.
    pub size: u64,
    /// The bytes that have arrived.
    pub bytes: Vec<u8>,
    /// How the transfer ended, if it has.
    pub outcome: Option<Result<Digest, RequestError>>,
}

impl Sink {
    fn upto(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }
}

/// One end of a [`Pair`](super::Pair).
#[derive(Debug)]
pub struct End<S: Side> {
    /// The connection. Every method may be called, except that events come from [`End::event`].
    pub connection: Connection<S>,
    /// The number of bytes without a sink, of transfers that were cancelled before they began.
    pub dropped: u64,
    pub(super) sources: BTreeMap<TransferId, Source>,
    style: Style,
    sinks: BTreeMap<TransferId, Sink>,
    events: VecDeque<S::Event>,
    hold: bool,
}

impl<S: Side> End<S> {
    pub(super) fn new(connection: Connection<S>, style: Style) -> End<S> {
        End {
            connection,
            dropped: 0,
            sources: BTreeMap::new(),
            style,
            sinks: BTreeMap::new(),
            events: VecDeque::new(),
            hold: false,
        }
    }

    /// Returns the next event, if there is one.
    pub fn event(&mut self) -> Option<S::Event> {
        self.note_events();
        self.events.pop_front()
    }

    /// Returns the sink of a transfer to this end.
    #[must_use]
    pub fn sink(&self, transfer: TransferId) -> Option<&Sink> {
        self.sinks.get(&transfer)
    }

    /// Stops reporting bytes as stored, so that windows close.
    pub fn hold_sinks(&mut self) {
        self.hold = true;
    }

    /// Reports all bytes as stored, and from now on each as it arrives.
    pub fn release_sinks(&mut self) {
        self.hold = false;
        for (transfer, sink) in &self.sinks {
            // Fails for transfers that are over, which does not matter.
            let _ = self.connection.stored(*transfer, sink.upto());
        }
    }

    fn note_events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            note(&mut self.sinks, S::transfer_event(&event));
            self.events.push_back(event);
        }
    }

    /// Sends the control messages that wait and at most one chunk; returns true if there was
    /// anything to send.
    pub(super) fn transmit(&mut self, now: Time, wire: &mut Wire) -> bool {
        if !wire.has_room() {
            return false;
        }
        let (mut out, mut last) = (Vec::new(), None);
        let sources = &self.sources;
        let mut read = |slice: Slice, into: &mut Vec<u8>| {
            let source = sources.get(&slice.transfer);
            let missing = || RequestError::Source { detail: "the test has given it no source".to_string() };
            last = Some(slice);
            source.ok_or_else(missing)?.read(slice, into)
        };
        match self.style {
            Style::Buffered => {
                buffered::transmit(&mut self.connection, now, &mut out, 1, read);
            }
            Style::Splicing => {
                let Some(transmit) = self.connection.poll_transmit(now, &mut out) else { return false };
                assert_eq!(transmit.head, out.len(), "the head is what was appended");
                wire.send(now, core::mem::take(&mut out));
                if let Some(slice) = transmit.body
                    && let Err(reason) = read(slice, &mut out)
                {
                    out = vec![0; slice.len as usize];
                    assert_eq!(self.connection.abort_blob(slice.transfer, reason), Ok(()));
                }
            }
        }
        let sent = !out.is_empty() || self.style == Style::Splicing;
        wire.send(now, out);
        if let Some((slice, source)) =
            last.and_then(|slice| Some((slice, self.sources.get(&slice.transfer)?)))
            && source.digest_at_end
            && slice.offset + slice.len == source.bytes.len() as u64
        {
            // Fails only if the source has failed.
            let _ = self.connection.finish_blob(slice.transfer, digest_of(&source.bytes));
        }
        sent
    }

    pub(super) fn handle_timeout(&mut self, now: Time) {
        // `Connection::error` returns the error of a dead connection.
        let _ = self.connection.handle_timeout(now);
        self.note_events();
    }

    /// Takes one read from the wire; returns true if it had any bytes.
    pub(super) fn receive(&mut self, now: Time, wire: &mut Wire) -> bool {
        if self.connection.error().is_some() {
            return false;
        }
        let max = match (self.style, self.connection.expect()) {
            (Style::Buffered, _) => usize::MAX,
            (Style::Splicing, Expect::Control { max }) => max,
            (Style::Splicing, Expect::Payload(slice)) => slice.len as usize,
        };
        let bytes = wire.read(now, max);
        if bytes.is_empty() {
            return false;
        }
        // `Connection::error` returns the error of a dead connection.
        let _ = match self.style {
            Style::Buffered => self.receive_buffered(now, &bytes),
            Style::Splicing => self.receive_spliced(now, &bytes),
        };
        self.note_events();
        if !self.hold {
            self.release_sinks();
        }
        true
    }

    fn receive_buffered(&mut self, now: Time, bytes: &[u8]) -> Result<(), PeerError> {
        let End { connection, sinks, events, dropped, .. } = self;
        buffered::receive(
            connection,
            now,
            bytes,
            &mut (sinks, dropped),
            |(sinks, _), _, event| {
                note(sinks, S::transfer_event(&event));
                events.push_back(event);
            },
            |(sinks, dropped), slice, at| write(sinks, dropped, slice, bytes.get(at).unwrap_or_default()),
        )
    }

    fn receive_spliced(&mut self, now: Time, bytes: &[u8]) -> Result<(), PeerError> {
        match self.connection.expect() {
            Expect::Control { .. } => {
                let used = self.connection.handle_control(now, bytes)?;
                assert_eq!(used, bytes.len(), "the bytes that were expected as control are control");
            }
            Expect::Payload(slice) => {
                let slice = Slice { len: bytes.len() as u64, ..slice };
                write(&mut self.sinks, &mut self.dropped, slice, bytes);
                let moved = self.connection.payload_moved(now, slice.len);
                assert_eq!(moved, Ok(()), "what was expected may be moved");
            }
        }
        Ok(())
    }
}

fn note(sinks: &mut BTreeMap<TransferId, Sink>, event: Option<&TransferEvent>) {
    match event {
        Some(&TransferEvent::Started { transfer, from, end, size, .. }) => {
            let sink = Sink { from, end, size, bytes: Vec::new(), outcome: None };
            assert_eq!(sinks.insert(transfer, sink), None, "a transfer begins once");
        }
        Some(TransferEvent::Stopped { transfer, digest }) => end(sinks, *transfer, Ok(*digest)),
        Some(TransferEvent::Aborted { transfer, reason }) => end(sinks, *transfer, Err(reason.clone())),
        None => {}
    }
}

/// Ends a transfer. One that never began has no sink.
fn end(sinks: &mut BTreeMap<TransferId, Sink>, transfer: TransferId, outcome: Result<Digest, RequestError>) {
    if let Some(sink) = sinks.get_mut(&transfer) {
        assert_eq!(sink.outcome, None, "a transfer ends once");
        sink.outcome = Some(outcome);
    }
}

fn write(sinks: &mut BTreeMap<TransferId, Sink>, dropped: &mut u64, slice: Slice, bytes: &[u8]) {
    match sinks.get_mut(&slice.transfer) {
        Some(sink) => {
            assert_eq!(sink.upto(), slice.offset, "bytes come in order, once");
            sink.bytes.extend_from_slice(bytes);
        }
        None => *dropped += slice.len,
    }
}
