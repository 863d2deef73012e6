//! What a connection leaves to its side, client or server.

use crate::connection::incoming::Accept;
use crate::connection::link::Link;
use crate::connection::transfer::TransferEvent;
use crate::error::PeerError;
use crate::ids::TransferId;
use crate::message::{Message, RequestError};

/// The side of the conversation that a connection holds: [`Client`](crate::client::Client) or
/// [`Server`](crate::server::Server).
///
/// The trait is sealed: another crate can use it as a bound, and cannot implement it.
pub trait Side: Sealed {
    /// What [`Connection::poll_event`](crate::connection::Connection::poll_event) returns.
    type Event: From<TransferEvent> + core::fmt::Debug;

    /// Returns the transfer event in an event, if it is one.
    fn transfer_event(event: &Self::Event) -> Option<&TransferEvent>;
}

/// The decisions that a side makes for the connection: which message is allowed when, and what
/// follows from it.
pub trait Sealed: Sized {
    /// The kinds of message to this side that may be long, by their numbers.
    const LONG: &'static [u8];

    /// Handles a message that the connection does not handle itself.
    fn message(
        &mut self,
        link: &mut Link,
        events: &mut Events<Self>,
        message: Message,
    ) -> Result<(), PeerError>
    where
        Self: Side;

    /// Checks whether this transfer may begin, and returns what becomes of its bytes.
    fn transfer_starts(
        &mut self,
        transfer: TransferId,
        from: u64,
        end: u64,
        size: u64,
    ) -> Result<Accept, PeerError>;

    /// Handles the end of a transfer to this side. `wanted`: the caller has a sink for it.
    fn transfer_ends(
        &mut self,
        link: &mut Link,
        events: &mut Events<Self>,
        event: TransferEvent,
        wanted: bool,
    ) where
        Self: Side;

    /// Gives up a transfer, in either direction, that made no progress for
    /// [`transfer_timeout`](crate::Config::transfer_timeout).
    fn transfer_stalls(
        &mut self,
        link: &mut Link,
        events: &mut Events<Self>,
        transfer: TransferId,
        reason: RequestError,
    ) where
        Self: Side;

    /// Notes that the caller has aborted this outgoing blob.
    fn sending_aborted(&mut self, transfer: TransferId);

    /// Returns the number of requests without an answer.
    fn requests_in_flight(&self) -> usize;

    /// Returns true if a transaction of this connection is voted and not finished.
    fn has_voted(&self) -> bool;
}

/// Events that wait for the caller.
pub(crate) type Events<S> = alloc::collections::VecDeque<<S as Side>::Event>;
