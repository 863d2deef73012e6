//! One machine that is harness: its peer is made up, its caller makes mistakes, and whatever it does is looked at.
//!
//! * It takes bytes or says why not; what it sends keeps to the limits and the credit of its peer.
//! * To hear some bytes takes no more memory than these account for.
//! * What it has taken and nobody has stored stays within the windows that it announced, and so does the credit that it
//!   gives; the bytes that wait to be sent stay within their limit.
//! * A call that is refused has changed nothing. (To see that costs time, so only some inputs ask for it.)
//! * Once it is dead it says so, says nothing else, and stays as it is.

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

/// What a machine may let wait beyond its limit: the message that passed it, and what becomes of that.
const BEYOND: usize = 8192;

/// What a machine may take at once, however little it hears: a reply, an event, a place in a table.
const FIXED: usize = 16 << 10;

/// How often a machine is asked for more before others have their turn.
const POLLS: usize = 40;

/// A machine, and all that is known of it.
pub(crate) struct MachineHarness<S: Side> {
    pub(crate) machine: Connection<S>,
    pub(crate) now: Time,
    limits: Limits,
    outgoing: OutgoingChecks,
    sinks: BTreeMap<TransferId, Sink>,
    /// What has come of a frame.
    frame: Vec<u8>,
    /// The payload that has come, for whomever.
    moved: u64,
    /// Whether refused calls are looked at.
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
    /// A machine with these limits, whose peer has the same.
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

    /// The peer says something. Payload that it announces follows at once.
    pub(crate) fn receive_generated(
        &mut self,
        generated: &Generated,
        event: &mut impl FnMut(&mut MachineHarness<S>, S::Event),
    ) {
        self.receive(&generated.bytes(), true, event);
    }

    /// Bytes arrive. `whole`: payload is not among them, but comes at once where it is expected.
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
                    // The bytes that wait may have to move when one more comes.
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

    /// Notes the limits and the credit that the peer has given, in bytes that the machine had no objection to.
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

    /// Takes the events that wait.
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

    /// The sink of a transfer has what has come, or only `part` of it.
    pub(crate) fn store(&mut self, transfer: TransferId, part: Option<u64>) {
        let moved = self.sinks.get(&transfer).map(|sink| sink.moved);
        let upto = part.or(moved).unwrap_or(0);
        if self.call(|machine| machine.stored(transfer, upto)).is_some()
            && let Some(sink) = self.sinks.get_mut(&transfer)
        {
            assert!(sink.stored <= upto && upto <= sink.moved, "{sink:?} can not have stored {upto}");
            sink.stored = upto;
        }
    }

    /// All sinks have what has come.
    pub(crate) fn store_all(&mut self) {
        let sinks: Vec<TransferId> = self.sinks.keys().copied().collect();
        sinks.into_iter().for_each(|transfer| self.store(transfer, None));
    }

    /// Nobody wants more of a transfer; what has come of it counts as taken.
    pub(crate) fn forget(&mut self, transfer: TransferId) {
        self.sinks.remove(&transfer);
    }

    /// A call that may be a mistake: then it changes nothing.
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

    /// The socket takes what the machine has to send, up to a point.
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

    /// Credit is given for what was stored, and a window more.
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

    /// Time passes; the machine is told, whether it has asked for that or not.
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
        assert_eq!(self.machine.poll_transmit(self.now, &mut head), None, "the dead do not speak");
        assert!(head.is_empty());
        assert_eq!(self.machine.poll_timeout(), None);
        assert_eq!(self.machine.handle_timeout(self.now).as_ref(), Err(error));
        assert_eq!(self.machine.handle_control(self.now, &[1, 0, 0, 0, 15]).as_ref(), Err(error));
        assert_eq!(self.machine.goodbye(), Err(UsageError::Dead(error.clone())));
        assert_eq!(self.machine.stored(TransferId(1), 0), Err(UsageError::Dead(error.clone())));
        self.machine.discard(TransferId(1));
    }

    /// What has come, and no sink has stored.
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
