//! Transfers to this side, and the credit that this side grants for them.
//!
//! An example, with a window of 100 bytes for each transfer and 150 for the connection:
//!
//! 1. Two transfers begin. Each sender may send below offset 100 of its transfer, and 150 bytes
//!    together.
//! 2. 100 bytes of the first and 50 of the second arrive. Neither may send more: the connection's
//!    150 are used up.
//! 3. The first sink stores its 100 bytes: `stored(first, 100)`. At most half of both windows is
//!    left, so both are opened again: `Credit {first, 200}`, `ConnectionCredit {250}`.
//! 4. The sender aborts the second transfer. Its bytes count as stored: `ConnectionCredit {300}`.
//!
//! Credit is absolute: a message that says "up to 200" can be repeated or merged without another
//! meaning.
//!
//! The sides limit the number of transfers: each transfer needs a request, and the requests are
//! counted.
//!
//! Invariants: `stored <= moved <= announced <= min(end, granted)` for each transfer. The
//! connection's `stored` is its `announced`, less the bytes that have not been moved yet, and less
//! those that a sink still holds.

#![warn(clippy::arithmetic_side_effects)]

use alloc::collections::BTreeMap;
use alloc::collections::BTreeSet;

use crate::connection::progress::Progress;
use crate::connection::transfer::Slice;
use crate::error::{PeerError, UsageError};
use crate::ids::TransferId;
use crate::limits::Limits;
use crate::message::Message;
use crate::planted::{Bug, planted};

/// What becomes of the bytes of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// The bytes go to a sink.
    Take,
    /// The bytes are dropped as they arrive: the request was answered or cancelled meanwhile.
    Drop,
}

#[derive(Debug)]
struct Transfer {
    end: u64,
    /// Offset behind the last chunk that was announced.
    announced: u64,
    /// Offset behind the last byte that the transport has moved.
    moved: u64,
    /// Offset behind the last byte that the sink has stored, or that was dropped.
    stored: u64,
    granted: u64,
    accept: Accept,
    /// The sender is done; only the sink has to store the rest.
    stopped: bool,
}

impl Transfer {
    /// Counts the bytes below `upto` as stored, and returns how many of them were not before.
    fn take(&mut self, upto: u64) -> u64 {
        let taken = upto.saturating_sub(self.stored);
        self.stored = upto;
        taken
    }
}

#[derive(Debug)]
pub(crate) struct Incoming {
    transfers: BTreeMap<TransferId, Transfer>,
    /// Transfers whose window may have to be opened.
    to_grant: BTreeSet<TransferId>,
    /// The transfers whose sender has to make progress. Stored bytes count too: the sender may have
    /// waited for credit.
    pub(crate) progress: Progress,
    /// Payload bytes since the connection began: announced, stored and granted.
    announced: u64,
    stored: u64,
    granted: u64,
}

impl Incoming {
    pub(crate) fn new(connection_window: u64) -> Incoming {
        Incoming {
            transfers: BTreeMap::new(),
            to_grant: BTreeSet::new(),
            progress: Progress::default(),
            announced: 0,
            stored: 0,
            granted: connection_window,
        }
    }

    /// Returns true if the sender has not stopped or aborted this transfer.
    pub(crate) fn contains(&self, id: TransferId) -> bool {
        self.transfers.get(&id).is_some_and(|transfer| !transfer.stopped)
    }

    /// Starts the time limit of a transfer whose request has arrived.
    pub(crate) fn expect(&mut self, id: TransferId) {
        self.progress.watch(id);
    }

    pub(crate) fn start(
        &mut self,
        id: TransferId,
        from: u64,
        end: u64,
        accept: Accept,
        limits: Limits,
    ) -> Result<(), PeerError> {
        let transfer = Transfer {
            end,
            announced: from,
            moved: from,
            stored: from,
            granted: from.saturating_add(limits.transfer_window),
            accept,
            stopped: false,
        };
        if self.transfers.insert(id, transfer).is_some() {
            return Err(PeerError::BadTransfer { transfer: id, what: "it has begun already" });
        }
        if accept == Accept::Take {
            self.progress.watch(id);
        }
        Ok(())
    }

    fn running(&mut self, id: TransferId) -> Result<&mut Transfer, PeerError> {
        match self.transfers.get_mut(&id) {
            Some(transfer) if !transfer.stopped => Ok(transfer),
            _ => Err(PeerError::BadTransfer { transfer: id, what: "it is not under way" }),
        }
    }

    pub(crate) fn chunk(
        &mut self,
        id: TransferId,
        offset: u64,
        len: u32,
        limits: Limits,
    ) -> Result<Slice, PeerError> {
        let bad = |what| PeerError::BadTransfer { transfer: id, what };
        let (total, granted) = (self.announced.saturating_add(u64::from(len)), self.granted);
        let transfer = self.running(id)?;
        if len == 0 || len > limits.chunk {
            return Err(bad("a chunk is empty or too long"));
        }
        if offset != transfer.announced {
            return Err(bad("a chunk is not where the last one ended"));
        }
        let upto = offset.checked_add(u64::from(len)).filter(|upto| *upto <= transfer.end);
        let upto = upto.ok_or_else(|| bad("a chunk goes beyond its end"))?;
        if upto > transfer.granted || total > granted {
            return Err(PeerError::CreditExceeded { transfer: id });
        }
        transfer.announced = upto;
        self.announced = total;
        Ok(Slice { transfer: id, offset, len: u64::from(len) })
    }

    /// Counts `n` bytes of this transfer as moved.
    pub(crate) fn moved(&mut self, id: TransferId, n: u64) {
        if let Some(transfer) = self.transfers.get_mut(&id) {
            transfer.moved = transfer.moved.saturating_add(n);
            self.progress.made(id);
            // Per chunk: otherwise the moment of a grant would depend on how the stream is cut.
            if transfer.accept == Accept::Drop && transfer.moved == transfer.announced {
                self.stored = self.stored.saturating_add(transfer.take(transfer.moved));
                self.to_grant.insert(id);
            }
        }
    }

    pub(crate) fn stored(&mut self, id: TransferId, upto: u64) -> Result<(), UsageError> {
        let transfer = self.transfers.get_mut(&id).ok_or(UsageError::NoSuchTransfer(id))?;
        if transfer.accept == Accept::Drop {
            return Ok(()); // It counted as stored when it was moved. The sink does not know yet that it is dropped.
        }
        if upto > transfer.moved || upto < transfer.stored {
            return Err(UsageError::BadRange(id));
        }
        let taken = transfer.take(upto);
        let taken_twice = if planted(Bug::GiveCreditTwice) { taken } else { 0 };
        self.stored = self.stored.saturating_add(taken).saturating_add(taken_twice);
        self.to_grant.insert(id);
        if taken > 0 {
            self.progress.made(id);
        }
        if transfer.stopped && transfer.stored == transfer.moved {
            self.transfers.remove(&id);
        }
        Ok(())
    }

    /// Ends a transfer whose sender has sent everything. Returns true if it has a sink.
    pub(crate) fn stop(&mut self, id: TransferId) -> Result<bool, PeerError> {
        let transfer = self.running(id)?;
        if transfer.moved != transfer.end {
            return Err(PeerError::BadTransfer { transfer: id, what: "it stops before its end" });
        }
        transfer.stopped = true;
        let (wanted, stored) = (transfer.accept == Accept::Take, transfer.stored == transfer.moved);
        self.progress.forget(id);
        if stored {
            self.transfers.remove(&id);
        }
        Ok(wanted)
    }

    /// Ends a transfer that the sender has aborted. Returns true if it has a sink.
    pub(crate) fn abort(&mut self, id: TransferId) -> Result<bool, PeerError> {
        let wanted = self.running(id)?.accept == Accept::Take;
        self.progress.forget(id);
        if let Some(mut transfer) = self.transfers.remove(&id) {
            self.stored = self.stored.saturating_add(transfer.take(transfer.moved));
        }
        Ok(wanted)
    }

    /// Drops the rest of this transfer as it arrives.
    pub(crate) fn drop_rest(&mut self, id: TransferId) {
        self.progress.forget(id);
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        if transfer.accept == Accept::Take {
            transfer.accept = Accept::Drop;
            self.stored = self.stored.saturating_add(transfer.take(transfer.moved));
            self.to_grant.insert(id);
        }
        if transfer.stopped {
            self.transfers.remove(&id);
        }
    }

    /// Returns the next credit to announce, if half of a window or less is open.
    pub(crate) fn next_grant(&mut self, limits: Limits) -> Option<Message> {
        while let Some(id) = self.to_grant.pop_first() {
            let Some(transfer) = self.transfers.get_mut(&id) else { continue };
            let open = transfer.granted.saturating_sub(transfer.stored);
            if transfer.granted < transfer.end && open <= limits.transfer_window / 2 {
                transfer.granted = transfer.stored.saturating_add(limits.transfer_window).min(transfer.end);
                return Some(Message::Credit { transfer: id, upto: transfer.granted });
            }
        }
        if self.granted.saturating_sub(self.stored) <= limits.connection_window / 2 {
            self.granted = self.stored.saturating_add(limits.connection_window);
            return Some(Message::ConnectionCredit { upto: self.granted });
        }
        None
    }
}
