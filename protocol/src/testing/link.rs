//! One direction of a simulated link: a stream of bytes that takes its time and arrives in pieces.

use core::time::Duration;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use crate::time::Time;

/// How one direction of a link behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// How long a byte is on its way.
    pub delay: Duration,
    /// The most bytes that each read gives, one after the other and over again; 0 counts as 1.
    pub fragments: Vec<usize>,
    /// While so many bytes are on their way, nothing is sent: how a peer that does not read is felt.
    pub capacity: usize,
}

impl Default for Link {
    /// A millisecond, whole reads, and 64 KiB.
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
    cut: bool,
}

impl Wire {
    pub(super) fn new(link: Link) -> Wire {
        let (in_flight, arrived) = (VecDeque::new(), VecDeque::new());
        Wire { link, reads: 0, in_flight, arrived, waiting: 0, cut: false }
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

    /// When the next bytes arrive.
    pub(super) fn next_arrival(&self) -> Option<Time> {
        self.in_flight.front().map(|(at, _)| *at)
    }

    /// Gives at most `max` bytes of those that have arrived; none where nothing has.
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

    /// What is on its way is lost, and nothing comes any more.
    pub(super) fn cut(&mut self) {
        self.cut = true;
        self.waiting = 0;
        self.in_flight.clear();
        self.arrived.clear();
    }

    pub(super) fn set(&mut self, link: Link) {
        self.link = link;
    }
}
