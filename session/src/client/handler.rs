//! The end of a client's connection that its transport drives.

use std::ops::Range;

use blobferry_protocol::{PeerError, RequestError, RequestId, Slice, Time, TransferId, buffered, client};
use bytes::Bytes;

use crate::client::session::Session;
use crate::client::state::{Sent, SessionState};
use crate::io::{ConnectionHandler, FileSlice};

/// One connection of a [`Session`]. Dropped while the session takes it for alive, it closes the session: nobody waits for
/// what can not come.
#[derive(Debug)]
pub struct Handler {
    session: Session,
    /// Which of the session's connections it is.
    generation: u64,
}

impl Handler {
    pub(super) fn new(session: Session, generation: u64) -> Handler {
        Handler { session, generation }
    }
}

impl ConnectionHandler for Handler {
    fn transmit(&mut self, now: Time, out: &mut Vec<u8>, enough: usize, lend: bool) -> Option<FileSlice> {
        let (mut locked, mut lent) = (self.session.lock(), None);
        let inner = &mut *locked;
        loop {
            let outlets = &mut inner.state.outlets;
            buffered::transmit(&mut inner.connection, now, out, enough, |slice, into| {
                lent = outlets.give(slice, into, lend)?;
                Ok(())
            });
            let drained = outlets.take_drained();
            for drained in &drained {
                let Some(digest) = drained.digest else { continue };
                let id: RequestId = drained.transfer.into();
                if let Some(Sent::Upload { digest: waits, .. }) = inner.state.waiters.get_mut(&id) {
                    *waits = Some(digest);
                }
                // Over only if the server has refused the blob meanwhile, and that needs no digest.
                let _ = inner.connection.finish_blob(drained.transfer, digest);
            }
            inner.pump();
            if drained.is_empty() || lent.is_some() {
                break;
            }
        }
        self.session.unlock_driven(locked);
        lent
    }

    fn body_failed(&mut self, transfer: TransferId, reason: RequestError) {
        let mut inner = self.session.lock();
        inner.state.outlets.remove(transfer);
        // Over only if the server has refused the blob meanwhile.
        let _ = inner.connection.abort_blob(transfer, reason);
        self.session.unlock_driven(inner);
    }

    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError> {
        let mut locked = self.session.lock();
        let inner = &mut *locked;
        let on_event = |state: &mut SessionState, _: &mut client::Connection, event| state.event(event);
        let on_payload = |state: &mut SessionState, slice: Slice, at: Range<usize>| {
            state.heard();
            if !state.collectors.payload(slice, bytes.get(at.clone()).unwrap_or_default()) {
                state.inlets.payload(slice, bytes.slice(at));
            }
        };
        let received =
            buffered::receive(&mut inner.connection, now, &bytes, &mut inner.state, on_event, on_payload);
        for (transfer, upto) in inner.state.collectors.take_stored() {
            // It may be over, and the connection dead: then nobody needs to know.
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
        let mut locked = self.session.lock();
        let handled = locked.connection.handle_timeout(now);
        while let Some(event) = locked.connection.poll_event() {
            locked.state.event(event);
        }
        locked.pump();
        self.session.unlock_driven(locked);
        handled
    }

    /// Calls go to the machine on the threads that make them.
    fn catch_up(&mut self) {}

    fn error(&self) -> Option<PeerError> {
        self.session.lock().connection.error().cloned()
    }

    fn is_finished(&self) -> bool {
        let inner = self.session.lock();
        // The session may have ended while this connection came about: nobody wants it any more.
        if inner.state.closed.is_some() {
            return true;
        }
        // Where the server has taken leave, what waits is for the next connection.
        inner.connection.is_finished() && (inner.state.waiting.is_empty() || !inner.state.leaving)
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let mut inner = self.session.lock();
        if inner.state.is_generation(self.generation) {
            inner.state.close("nobody drives it any more");
        }
        self.session.unlock(inner, false);
    }
}
