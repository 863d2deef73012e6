//! Runs one protocol machine with a generated peer and a caller that makes mistakes, and checks it.
//!
//! * The machine takes bytes or reports an error. What it sends respects the peer's limits and
//!   credit.
//! * The memory for received bytes is bounded by their number.
//! * Received bytes that are not stored stay within the announced windows, and so does the credit.
//!   The bytes that wait to be sent stay within their limit.
//! * A refused call changes nothing. This check is slow, so only some inputs enable it.
//! * A dead machine reports its error, sends nothing, and does not change.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use blobferry_protocol::connection::Connection;
use blobferry_protocol::connection::Side;
use blobferry_protocol::wire;
use blobferry_protocol::wire::LENGTH_BYTES;
use blobferry_protocol::{
    Expect, Hello, Limits, Message, PeerError, Time, TransferEvent, TransferId, UsageError, Welcome,
};

use crate::memory::bounded;
use crate::message_gen::Generated;
use crate::outgoing_checks::OutgoingChecks;

/// Bytes by which the queue may exceed its limit: the message that passed it, and its consequences.
const BEYOND: usize = 8192;

/// Bytes that a machine may allocate for any input: a reply, an event, a table entry.
const FIXED: usize = 16 << 10;

/// The most transmits in a row, before the other side acts again.
const POLLS: usize = 40;

/// A machine, and what the harness knows of it.
pub(crate) struct MachineHarness<S: Side> {
    pub(crate) machine: Connection<S>,
    pub(crate) now: Time,
    limits: Limits,
    outgoing: OutgoingChecks,
    sinks: BTreeMap<TransferId, Sink>,
    /// The received part of the current frame.
    frame: Vec<u8>,
    /// All received payload, in bytes.
    moved: u64,
    /// Whether refused calls are checked for changes.
    thorough: bool,
}

/// A transfer towards the machine.
#[derive(Clone, Copy, Debug)]
struct Sink {
    moved: u64,
    stored: u64,
}

impl<S: Side> MachineHarness<S>
where
    Connection<S>: Debug,
{
    /// Wraps a machine with these limits. Its peer has the same limits.
    pub(crate) fn new(machine: Connection<S>, limits: Limits, thorough: bool) -> MachineHarness<S> {
        let sinks = BTreeMap::new();
        MachineHarness {
            machine,
            now: Time::ZERO,
            limits,
            outgoing: OutgoingChecks::new(limits),
            sinks,
            frame: Vec::new(),
            moved: 0,
            thorough,
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.machine.error().is_some()
    }

    /// Receives a generated message. Payload that it announces follows at once.
    pub(crate) fn receive_generated(
        &mut self,
        generated: &Generated,
        event: &mut impl FnMut(&mut MachineHarness<S>, S::Event),
    ) {
        self.receive(&generated.bytes(), true, event);
    }

    /// Receives bytes. With `whole`, payload is not part of `bytes`, but arrives as soon as it is
    /// expected.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        whole: bool,
        event: &mut impl FnMut(&mut MachineHarness<S>, S::Event),
    ) {
        let mut rest = bytes;
        while !self.is_dead() {
            match self.machine.expect() {
                Expect::Payload(slice) if whole || !rest.is_empty() => {
                    let n = if whole { slice.len } else { slice.len.min(rest.len() as u64) };
                    rest = if whole { rest } else { &rest[n as usize..] };
                    self.moved += n;
                    if let Some(sink) = self.sinks.get_mut(&slice.transfer) {
                        assert_eq!(sink.moved, slice.offset, "bytes come in order, once");
                        sink.moved += n;
                    }
                    self.machine.payload_moved(self.now, n).expect("as much as was expected");
                    self.check_windows();
                }
                Expect::Control { max } if !rest.is_empty() => {
                    assert!(max > 0, "there is always something to read");
                    // One more byte may make the machine reallocate its queue.
                    let fixed = FIXED + 4 * self.machine.backlog();
                    let used = bounded(rest.len(), fixed, || self.machine.handle_control(self.now, rest));
                    self.events(event);
                    let Ok(used) = used else { break };
                    assert!(used > 0, "bytes that are not payload are taken");
                    self.note_peer_limits(&rest[..used]);
                    rest = &rest[used..];
                }
                _ => break,
            }
        }
        self.check();
    }

    /// Records the limits and the credit that the peer has given in bytes which the machine
    /// accepted.
    fn note_peer_limits(&mut self, bytes: &[u8]) {
        self.frame.extend_from_slice(bytes);
        while let Some(length) = self.frame.first_chunk::<LENGTH_BYTES>() {
            let end = LENGTH_BYTES + u32::from_le_bytes(*length) as usize;
            let Some(body) = self.frame.get(LENGTH_BYTES..end) else { break };
            match wire::decode(body) {
                Ok(Message::Hello(Hello { limits, .. }) | Message::Welcome(Welcome { limits, .. })) => {
                    self.outgoing.set_limits(limits);
                }
                Ok(Message::Credit { transfer, upto }) => self.outgoing.credit(transfer, upto),
                Ok(Message::ConnectionCredit { upto }) => self.outgoing.connection_credit(upto),
                _ => {}
            }
            self.frame.drain(..end);
        }
    }

    /// Polls all events.
    pub(crate) fn events(&mut self, event: &mut impl FnMut(&mut MachineHarness<S>, S::Event)) {
        while let Some(happened) = self.machine.poll_event() {
            match S::transfer_event(&happened) {
                Some(&TransferEvent::Started { transfer, from, end, size, .. }) => {
                    assert!(from <= end && end <= size);
                    let before = self.sinks.insert(transfer, Sink { moved: from, stored: from });
                    assert!(before.is_none(), "{transfer:?} begins twice");
                }
                Some(TransferEvent::Aborted { transfer, .. }) => self.forget(*transfer),
                Some(TransferEvent::Stopped { .. }) | None => {}
            }
            event(self, happened);
        }
    }

    /// Reports to the machine that a sink has stored all received bytes, or those up to `part`.
    pub(crate) fn store(&mut self, transfer: TransferId, part: Option<u64>) {
        let moved = self.sinks.get(&transfer).map(|sink| sink.moved);
        let upto = part.or(moved).unwrap_or(0);
        if self.call(|machine| machine.stored(transfer, upto)).is_some()
            && let Some(sink) = self.sinks.get_mut(&transfer)
        {
            assert!(sink.stored <= upto && upto <= sink.moved, "{sink:?} cannot have stored {upto}");
            sink.stored = upto;
        }
    }

    /// Reports that all sinks have stored their received bytes.
    pub(crate) fn store_all(&mut self) {
        let sinks: Vec<TransferId> = self.sinks.keys().copied().collect();
        sinks.into_iter().for_each(|transfer| self.store(transfer, None));
    }

    /// Removes a sink; its received bytes count as stored.
    pub(crate) fn forget(&mut self, transfer: TransferId) {
        self.sinks.remove(&transfer);
    }

    /// Makes a call that may be a mistake. If it is refused, it must change nothing.
    pub(crate) fn call<T>(
        &mut self,
        call: impl FnOnce(&mut Connection<S>) -> Result<T, UsageError>,
    ) -> Option<T> {
        let before = self.thorough.then(|| format!("{:?}", self.machine));
        let called = call(&mut self.machine);
        if let (Some(before), Err(error)) = (before, &called) {
            assert_eq!(before, format!("{:?}", self.machine), "{error}");
        }
        self.check();
        called.ok()
    }

    /// Transmits at most [`POLLS`] times.
    pub(crate) fn send(&mut self) {
        for _ in 0..POLLS {
            let mut head = Vec::new();
            let Some(transmit) = self.machine.poll_transmit(self.now, &mut head) else { break };
            assert_eq!(transmit.head, head.len());
            self.outgoing.check(&head, transmit.body);
        }
        self.check_credit_given();
        self.check();
    }

    /// Checks that credit was given only for stored bytes and one window.
    fn check_credit_given(&self) {
        let (given, all) = self.outgoing.given();
        for (transfer, sink) in &self.sinks {
            let most = sink.stored.saturating_add(self.limits.transfer_window);
            let given = given.get(transfer).copied().unwrap_or(0);
            assert!(given <= most, "{given} of {transfer:?} may come where {most} fit");
        }
        let most = self.moved.saturating_add(self.limits.connection_window);
        assert!(all <= most, "{all} may come where {most} fit");
    }

    /// Advances the time and calls `handle_timeout`, whether it is due or not.
    pub(crate) fn advance_time(
        &mut self,
        time: Duration,
        event: &mut impl FnMut(&mut MachineHarness<S>, S::Event),
    ) {
        self.now = self.now + time;
        let due = self.machine.poll_timeout().is_some_and(|due| due <= self.now);
        let before = (self.thorough && !due).then(|| self.machine.backlog());
        let _ = self.machine.handle_timeout(self.now);
        assert!(before.is_none_or(|before| before == self.machine.backlog()), "too early does nothing");
        self.events(event);
        if !self.is_dead() {
            assert!(self.machine.poll_timeout() > Some(self.now), "what is due was done");
        }
        self.check();
    }

    fn check(&mut self) {
        let most = self.limits.control_queue as usize + BEYOND;
        assert!(self.machine.backlog() <= most, "{} bytes wait", self.machine.backlog());
        if let Some(error) = self.machine.error().cloned() {
            self.stays_dead(&error);
        }
    }

    fn stays_dead(&mut self, error: &PeerError) {
        let mut head = Vec::new();
        assert_eq!(self.machine.poll_transmit(self.now, &mut head), None, "a dead machine sends nothing");
        assert!(head.is_empty());
        assert_eq!(self.machine.poll_timeout(), None);
        assert_eq!(self.machine.handle_timeout(self.now).as_ref(), Err(error));
        assert_eq!(self.machine.handle_control(self.now, &[1, 0, 0, 0, 15]).as_ref(), Err(error));
        assert_eq!(self.machine.goodbye(), Err(UsageError::Dead(error.clone())));
        assert_eq!(self.machine.stored(TransferId(1), 0), Err(UsageError::Dead(error.clone())));
        self.machine.discard(TransferId(1));
    }

    /// Checks that the received bytes which no sink has stored fit into the windows.
    fn check_windows(&self) {
        let mut all = 0;
        for (transfer, sink) in &self.sinks {
            let held = sink.moved - sink.stored;
            assert!(held <= self.limits.transfer_window, "{held} bytes of {transfer:?} are held");
            all += held;
        }
        assert!(all <= self.limits.connection_window, "{all} bytes are held");
    }
}
