//! Spinning for a small answer: a caller polls a few times before it sleeps.
//!
//! To wake a thread whose processor sleeps takes about as long as a small request, most of all on a virtual machine. A
//! caller has nothing else to do, so it polls first, and yields to other threads in between. A server's loop does not
//! spin for small requests, because that would take processor time from them. For large blobs,
//! [`ConnectionIo`](blobferry_session::io::ConnectionIo) says whether to spin, to callers and loops alike.

use std::io;
use std::thread;
use std::time::Duration;

use mio::{Events, Poll};

/// Polls before a sleep: about 30 µs if no other thread wants the processor.
const MAX_POLLS: u32 = 50;

/// Waits for events, for at most `timeout`.
pub(crate) fn wait(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
    if timeout != Some(Duration::ZERO) {
        for _ in 0..MAX_POLLS {
            poll.poll(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                return Ok(());
            }
            thread::yield_now();
        }
    }
    poll.poll(events, timeout)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mio::{Token, Waker};

    use super::*;

    #[test]
    fn events_end_the_wait_and_the_timeout_is_kept() {
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(8));
        let waker = Waker::new(poll.registry(), Token(7)).unwrap();
        let tokens = |events: &Events| events.iter().map(|event| event.token().0).collect::<Vec<_>>();
        waker.wake().unwrap();
        wait(&mut poll, &mut events, None).unwrap();
        assert_eq!(tokens(&events), [7]);
        thread::scope(|scope| {
            scope.spawn(|| waker.wake().unwrap());
            wait(&mut poll, &mut events, None).unwrap();
        });
        assert_eq!(tokens(&events), [7]);
        let (begun, timeout) = (Instant::now(), Duration::from_millis(1));
        wait(&mut poll, &mut events, Some(timeout)).unwrap();
        assert!(tokens(&events).is_empty() && begun.elapsed() >= timeout);
        wait(&mut poll, &mut events, Some(Duration::ZERO)).unwrap();
        assert!(tokens(&events).is_empty());
    }
}
