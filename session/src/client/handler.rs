//! A client's end of one connection, which a transport drives.

use std::ops::Range;

use blobferry_protocol::{PeerError, RequestError, RequestId, Slice, Time, TransferId, buffered, client};
use bytes::Bytes;
use tracing::Span;

use crate::client::queue::{Sent, Upload};
use crate::client::shared::Session;
use crate::client::state::SessionState;
use crate::io::{ConnectionHandler, FileSlice};

/// One connection of a [`Session`]. If it is dropped before [`Session::lost`] was called, it closes the session, so that
/// pending calls fail instead of hanging.
#[derive(Debug)]
pub struct Handler {
    session: Session,
    /// The number of the connection.
    generation: u64,
    span: Span,
}

impl Handler {
    pub(super) fn new(session: Session, generation: u64, peer: &str) -> Handler {
        let span = tracing::debug_span!(target: "blobferry::client", "connection", peer);
        Handler { session, generation, span }
    }
}

impl ConnectionHandler for Handler {
    fn transmit(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        enough: usize,
        zero_copy: bool,
    ) -> Option<FileSlice> {
        let _entered = self.span.enter();
        let (mut locked, mut body) = (self.session.lock(), None);
        let inner = &mut *locked;
        loop {
            let outgoing = &mut inner.state.outgoing;
            buffered::transmit(&mut inner.connection, now, out, enough, |slice, into| {
                body = outgoing.give(slice, into, zero_copy)?;
                Ok(())
            });
            let drained = outgoing.take_drained();
            for drained in &drained {
                let Some(digest) = drained.digest else { continue };
                let id: RequestId = drained.transfer.into();
                if let Some(Sent::Upload(Upload { digest: known, .. })) = inner.state.sent.get_mut(&id) {
                    *known = Some(digest);
                }
                // An error means that the server has refused the blob, and needs no digest.
                let _ = inner.connection.finish_blob(drained.transfer, digest);
            }
            inner.pump();
            if drained.is_empty() || body.is_some() {
                break;
            }
        }
        self.session.unlock_driven(locked);
        body
    }

    fn body_failed(&mut self, transfer: TransferId, reason: RequestError) {
        let _entered = self.span.enter();
        let mut inner = self.session.lock();
        inner.state.outgoing.remove(transfer);
        // An error means that the server has refused the blob.
        let _ = inner.connection.abort_blob(transfer, reason);
        self.session.unlock_driven(inner);
    }

    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError> {
        let _entered = self.span.enter();
        let mut locked = self.session.lock();
        let inner = &mut *locked;
        let on_event = |state: &mut SessionState, _: &mut client::Connection, event| state.event(event);
        let on_payload = |state: &mut SessionState, slice: Slice, at: Range<usize>| {
            state.server_answered();
            if !state.memory.payload(slice, bytes.get(at.clone()).unwrap_or_default()) {
                state.incoming.payload(slice, bytes.slice(at));
            }
        };
        let received =
            buffered::receive(&mut inner.connection, now, &bytes, &mut inner.state, on_event, on_payload);
        for (transfer, upto) in inner.state.memory.take_stored() {
            // An error means that the transfer is over or the connection dead, and needs no credit.
            let _ = inner.connection.stored(transfer, upto);
        }
        inner.pump();
        self.session.unlock_driven(locked);
        received
    }

    fn wants_input(&self) -> bool {
        true
    }

    fn payload_due(&self) -> u64 {
        self.session.lock().connection.expect().payload_due()
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.session.lock().connection.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError> {
        let _entered = self.span.enter();
        let mut locked = self.session.lock();
        let handled = locked.connection.handle_timeout(now);
        while let Some(event) = locked.connection.poll_event() {
            locked.state.event(event);
        }
        locked.pump();
        self.session.unlock_driven(locked);
        handled
    }

    /// Does nothing: the threads that make calls pass them to the machine.
    fn catch_up(&mut self) {}

    fn error(&self) -> Option<PeerError> {
        self.session.lock().connection.error().cloned()
    }

    fn is_finished(&self) -> bool {
        let inner = self.session.lock();
        // The session may have ended while this connection was made.
        if inner.state.closed().is_some() {
            return true;
        }
        // After the server's goodbye, queued requests are for the next connection.
        inner.connection.is_finished() && (inner.state.queued.is_empty() || !inner.state.leaving)
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let mut inner = self.session.lock();
        if inner.state.is_generation(self.generation) {
            inner.state.close("the transport dropped its connection");
        }
        self.session.unlock(inner, false);
    }
}
