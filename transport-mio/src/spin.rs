//! How a caller waits for a small answer: for a moment it looks for it, and then it sleeps. While a large blob is moved, the
//! [`ConnectionIo`](blobferry_session::io::ConnectionIo) says whether to look, to callers and loops alike.
//!
//! To wake a thread whose processor has gone to sleep takes as long as a small request does, most of all on a virtual machine:
//! the host has to be told. So a caller, who has nothing else to do, looks some times before it sleeps, and lets others go
//! first in between. A loop that serves many does not look for small requests: it would take the time from them.

use std::io;
use std::thread;
use std::time::Duration;

use mio::{Events, Poll};

/// How often it looks: for some 30 µs where nobody else wants the processor.
const LOOKS: u32 = 50;

/// Waits for events, at most for so long.
pub(crate) fn wait(poll: &mut Poll, events: &mut Events, patience: Option<Duration>) -> io::Result<()> {
    if patience != Some(Duration::ZERO) {
        for _ in 0..LOOKS {
            poll.poll(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                return Ok(());
            }
            thread::yield_now();
        }
    }
    poll.poll(events, patience)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mio::{Token, Waker};

    use super::*;

    #[test]
    fn what_happens_while_it_looks_or_sleeps_is_told_and_nothing_is_waited_for_too_long() {
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(8));
        let waker = Waker::new(poll.registry(), Token(7)).unwrap();
        let told = |events: &Events| events.iter().map(|event| event.token().0).collect::<Vec<_>>();
        waker.wake().unwrap();
        wait(&mut poll, &mut events, None).unwrap();
        assert_eq!(told(&events), [7]);
        thread::scope(|scope| {
            scope.spawn(|| waker.wake().unwrap());
            wait(&mut poll, &mut events, None).unwrap();
        });
        assert_eq!(told(&events), [7]);
        let (begun, patience) = (Instant::now(), Duration::from_millis(1));
        wait(&mut poll, &mut events, Some(patience)).unwrap();
        assert!(told(&events).is_empty() && begun.elapsed() >= patience);
        wait(&mut poll, &mut events, Some(Duration::ZERO)).unwrap();
        assert!(told(&events).is_empty());
    }
}
