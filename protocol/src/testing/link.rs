//! One direction of a simulated link: a stream of bytes with a delay, which arrives in pieces.

use core::time::Duration;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use crate::time::Time;

/// The behaviour of one direction of a link.
///
/// The default has a delay of 1 ms, reads that return all bytes that have arrived, and a capacity
/// of 64 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The time from the send of a byte to its arrival. Default: 1 ms.
    pub delay: Duration,
    /// The most bytes of each read, for one read after the other, repeated; 0 counts as 1. Default:
    /// no limit.
    pub fragments: Vec<usize>,
    /// The number of unread bytes at which nothing more is sent, as with a peer that does not read.
    /// Default: 64 KiB.
    pub capacity: usize,
}

impl Default for Link {
    fn default() -> Link {
        Link { delay: Duration::from_millis(1), fragments: vec![usize::MAX], capacity: 64 << 10 }
    }
}

/// One direction of a link, and the bytes on it.
#[derive(Debug)]
pub(super) struct Wire {
    link: Link,
    reads: usize,
    in_flight: VecDeque<(Time, Vec<u8>)>,
    arrived: VecDeque<u8>,
    waiting: usize,
    /// An end was dropped.
    closed: bool,
    cut: bool,
}

impl Wire {
    pub(super) fn new(link: Link) -> Wire {
        let (in_flight, arrived) = (VecDeque::new(), VecDeque::new());
        Wire { link, reads: 0, in_flight, arrived, waiting: 0, closed: false, cut: false }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.cut && self.waiting < self.link.capacity.max(1)
    }

    pub(super) fn send(&mut self, now: Time, bytes: Vec<u8>) {
        if !self.cut && !bytes.is_empty() {
            self.waiting += bytes.len();
            self.in_flight.push_back((now + self.link.delay, bytes));
        }
    }

    /// Returns the time when the next bytes arrive.
    pub(super) fn next_arrival(&self) -> Option<Time> {
        self.in_flight.front().map(|(at, _)| *at)
    }

    /// Returns at most `max` of the bytes that have arrived, or none.
    pub(super) fn read(&mut self, now: Time, max: usize) -> Vec<u8> {
        while self.next_arrival().is_some_and(|arrival| arrival <= now) {
            self.arrived.extend(self.in_flight.pop_front().into_iter().flat_map(|(_, bytes)| bytes));
        }
        let fragments = &self.link.fragments;
        let most = fragments.get(self.reads % fragments.len().max(1)).copied().unwrap_or(usize::MAX).max(1);
        let n = most.min(max).min(self.arrived.len());
        if n > 0 {
            self.reads += 1;
            self.waiting -= n;
        }
        self.arrived.drain(..n).collect()
    }

    /// Drops the bytes under way. Nothing arrives any more.
    pub(super) fn cut(&mut self) {
        self.cut = true;
        self.waiting = 0;
        self.in_flight.clear();
        self.arrived.clear();
    }

    /// Accepts no more bytes. Those under way still arrive.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed || self.cut
    }

    /// Returns true if no bytes are left on a closed wire.
    pub(super) fn is_at_end(&self) -> bool {
        self.is_closed() && self.in_flight.is_empty() && self.arrived.is_empty()
    }

    pub(super) fn set(&mut self, link: Link) {
        self.link = link;
    }
}
