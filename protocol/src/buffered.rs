//! The inner loops of a transport that reads and writes through buffers.
//!
//! The two functions do no I/O: bytes come in as slices and go out into a `Vec`. A transport that
//! moves payload past user space (`splice`, buffers of an io_uring) drives the [`Connection`]
//! itself, and gets the same events.

use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use crate::connection::{Connection, Expect, Side, Slice};
use crate::error::{PeerError, UsageError};
use crate::message::RequestError;
use crate::time::Time;

/// Appends what is to be sent to `out`, until `out` holds at least `enough` bytes or nothing is
/// left to send.
///
/// `read` appends all bytes of a slice. It appends, and does not fill a buffer, because zeroing
/// that buffer would be one more pass over every byte. If `read` fails, the peer gets zeros in
/// their place, and the transfer is aborted with the error.
///
/// If `read` appends nothing and succeeds, the function returns that slice. The caller then sends
/// its bytes directly behind those in `out`.
pub fn transmit<S: Side>(
    connection: &mut Connection<S>,
    now: Time,
    out: &mut Vec<u8>,
    enough: usize,
    mut read: impl FnMut(Slice, &mut Vec<u8>) -> Result<(), RequestError>,
) -> Option<Slice> {
    while out.len() < enough {
        let transmit = connection.poll_transmit(now, out)?;
        let Some(slice) = transmit.body else { continue };
        let start = out.len();
        // A slice is never longer than the chunk that its length in a `u32` was sent for.
        let end = start + slice.len as usize;
        let read = read(slice, out);
        if out.len() == start && read.is_ok() {
            return Some(slice);
        }
        let read = if out.len() == end || read.is_err() { read } else { Err(wrong_length(slice)) };
        if let Err(reason) = read {
            out.truncate(start);
            out.resize(end, 0);
            // The transfer is under way: its end is queued by the next poll at the earliest.
            let aborted = connection.abort_blob(slice.transfer, reason);
            debug_assert!(aborted.is_ok());
        }
    }
    None
}

fn wrong_length(slice: Slice) -> RequestError {
    RequestError::Source { detail: format!("it did not give the {} bytes that were to be read", slice.len) }
}

/// Processes `bytes` from the peer.
///
/// Control goes to the connection, and payload to `payload`, as the slice and its range in `bytes`.
/// Each event goes to `event` before the payload that follows it.
///
/// # Errors
/// The rule that the peer broke. The connection is dead; `event` has had the events before that.
pub fn receive<S: Side, State>(
    connection: &mut Connection<S>,
    now: Time,
    bytes: &[u8],
    state: &mut State,
    mut event: impl FnMut(&mut State, &mut Connection<S>, S::Event),
    mut payload: impl FnMut(&mut State, Slice, Range<usize>),
) -> Result<(), PeerError> {
    let mut at = 0;
    while at < bytes.len() {
        match connection.expect() {
            Expect::Control { .. } => {
                let used = connection.handle_control(now, bytes.get(at..).unwrap_or_default());
                while let Some(happened) = connection.poll_event() {
                    event(state, connection, happened);
                }
                at += used?;
            }
            Expect::Payload(slice) => {
                let n = slice.len.min((bytes.len() - at) as u64);
                let end = at + n as usize;
                payload(state, Slice { len: n, ..slice }, at..end);
                // No more is moved than is expected, so the only error is a connection that has
                // died meanwhile.
                if let Err(UsageError::Dead(error)) = connection.payload_moved(now, n) {
                    return Err(error);
                }
                at = end;
            }
        }
    }
    Ok(())
}
