//! The simulated network: connections that delay, split, stall and lose bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blobferry_protocol::Time;
use blobferry_session::client;
use blobferry_session::io::{CloseReason, ConnectionHandler};
use blobferry_session::server;
use bytes::Bytes;
use fastrand::Rng;

use super::wire_monitor::WireMonitor;
use super::world::Pid;

/// The most bytes that an end transmits at once.
const TRANSMIT_BYTES: usize = 16 << 10;

/// The number of received bytes after which pieces are no longer small: small pieces are slow to
/// simulate.
const SMALL_PIECES: usize = 20_000;

/// How a connection transports bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkProfile {
    /// The least delay of a piece.
    pub(super) delay: Duration,
    /// The most additional delay of a piece.
    pub(super) jitter: Duration,
    /// The most bytes in flight in one direction.
    pub(super) capacity: usize,
    /// The most bytes that arrive at once.
    pub(super) piece: usize,
}

impl LinkProfile {
    /// Chooses a profile at random; most links are good.
    pub(super) fn by(rng: &mut Rng) -> LinkProfile {
        LinkProfile {
            delay: Duration::from_micros(rng.u64(20..5000)),
            jitter: Duration::from_micros(rng.u64(..3000)),
            capacity: [1 << 10, 8 << 10, 64 << 10, 256 << 10][rng.usize(..4)],
            piece: match rng.u8(..16) {
                0 => 1,
                1 => 7,
                2..5 => 1000,
                _ => usize::MAX,
            },
        }
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    in_flight: VecDeque<(Duration, Bytes)>,
    bytes: usize,
    /// The time before which no bytes arrive.
    stalled_until: Duration,
    /// Sent bytes are lost, and the sender is not notified.
    discards: bool,
    /// When the receiver is notified that the sender has gone.
    closed: Option<Duration>,
    last: Duration,
    /// The number of bytes that have arrived.
    arrived: usize,
}

/// The connection handler of an end.
pub(super) enum Handler {
    Client(client::Handler),
    Server(Box<server::Handler>),
}

impl Handler {
    fn as_dyn(&mut self) -> &mut dyn ConnectionHandler {
        match self {
            Handler::Client(handler) => handler,
            Handler::Server(handler) => handler.as_mut(),
        }
    }
}

/// One end of a connection.
pub(super) struct Endpoint {
    pub(super) pid: Pid,
    pub(super) handler: Handler,
    pub(super) woken: Arc<AtomicBool>,
    /// The next time at which the end is to be driven.
    pub(super) next_drive: Option<Duration>,
}

/// A connection.
pub(super) struct Connection {
    pub(super) client: Option<Endpoint>,
    pub(super) server: Option<Endpoint>,
    begun: Duration,
    up: Direction,
    down: Direction,
    profile: LinkProfile,
    pub(super) monitor: WireMonitor,
}

/// What driving an end led to.
pub(super) struct Driven {
    /// When the end is to be driven again, even if nothing else happens.
    pub(super) again: Option<Duration>,
    /// Why the connection is over for this end.
    pub(super) ended: Option<CloseReason>,
    /// When the other end has something to do.
    pub(super) other: Option<Duration>,
    /// A rule that was broken.
    pub(super) broken: Option<String>,
}

impl Connection {
    pub(super) fn new(begun: Duration, profile: LinkProfile) -> Connection {
        Connection {
            client: None,
            server: None,
            begun,
            up: Direction::default(),
            down: Direction::default(),
            profile,
            monitor: WireMonitor::default(),
        }
    }

    /// Converts the time to the clock of the connection's machines.
    pub(super) fn clock(&self, now: Duration) -> Time {
        Time(now.saturating_sub(self.begun))
    }

    pub(super) fn endpoint(&mut self, is_client: bool) -> &mut Option<Endpoint> {
        if is_client { &mut self.client } else { &mut self.server }
    }

    /// Returns whether the server has received a commit that it has not answered.
    pub(super) fn brings_commit(&self) -> bool {
        self.up.in_flight.is_empty() && self.monitor.is_committing()
    }

    /// Lets no bytes arrive in one direction until a time.
    pub(super) fn stall(&mut self, to_client: bool, until: Duration) {
        let way = if to_client { &mut self.down } else { &mut self.up };
        way.stalled_until = way.stalled_until.max(until);
    }

    /// Loses all that is sent in one direction from now on, without notice.
    pub(super) fn discard(&mut self, to_client: bool) {
        let way = if to_client { &mut self.down } else { &mut self.up };
        way.discards = true;
        way.in_flight.clear();
        way.bytes = 0;
    }

    /// Cuts the connection. Returns the times at which the server and the client are notified.
    pub(super) fn cut(&mut self, now: Duration, rng: &mut Rng) -> [Duration; 2] {
        let mut notified = [now, now];
        for (way, at) in [&mut self.up, &mut self.down].into_iter().zip(&mut notified) {
            // Of the bytes in flight all, some or none arrive.
            way.in_flight.truncate(rng.usize(..=way.in_flight.len()));
            way.bytes = way.in_flight.iter().map(|(_, bytes)| bytes.len()).sum();
            *at += Duration::from_micros(rng.u64(..20_000));
            way.discards = true;
            way.closed.get_or_insert(*at);
        }
        notified
    }

    /// Removes one end. The other end is notified after the last bytes have arrived; returns when.
    pub(super) fn leave(&mut self, is_client: bool, now: Duration) -> Duration {
        *self.endpoint(is_client) = None;
        let delay = self.profile.delay;
        let way = if is_client { &mut self.up } else { &mut self.down };
        let at = way.last.max(now + delay);
        if !way.discards {
            way.closed.get_or_insert(at);
        }
        // The removed end reads nothing more.
        let back = if is_client { &mut self.down } else { &mut self.up };
        back.discards = true;
        back.in_flight.clear();
        back.bytes = 0;
        at
    }

    /// Drives an end: receives what has arrived, and transmits.
    pub(super) fn drive(&mut self, is_client: bool, now: Duration, pace: &mut Rng) -> Driven {
        let clock = self.clock(now);
        let mut driven = Driven { again: None, ended: None, other: None, broken: None };
        let (endpoint, arriving, leaving) = match is_client {
            true => (&mut self.client, &mut self.down, &mut self.up),
            false => (&mut self.server, &mut self.up, &mut self.down),
        };
        let Some(endpoint) = endpoint else { return driven };
        endpoint.woken.store(false, Ordering::SeqCst);
        let handler = endpoint.handler.as_dyn();
        if handler.poll_timeout().is_some_and(|at| at <= clock)
            && let Err(error) = handler.handle_timeout(clock)
        {
            driven.ended = Some(error.into());
            return driven;
        }
        // Receive.
        while handler.wants_input() && arriving.stalled_until <= now {
            let Some((at, mut bytes)) = arriving.in_flight.pop_front() else { break };
            if at > now {
                arriving.in_flight.push_front((at, bytes));
                break;
            }
            // Small pieces take their time here, too, so only the first bytes come in them.
            let piece = if arriving.arrived < SMALL_PIECES { self.profile.piece } else { usize::MAX };
            let most = piece.min(bytes.len());
            let piece = match most == bytes.len() && pace.u8(..) < 32 {
                true => pace.usize(1..=most),
                false => most,
            };
            let rest = bytes.split_off(piece);
            arriving.bytes -= piece;
            arriving.arrived += piece;
            driven.other = Some(now); // there is room again
            if !rest.is_empty() {
                arriving.in_flight.push_front((at, rest));
            }
            if let Err(error) = handler.receive(clock, bytes) {
                driven.ended = Some(error.into());
                return driven;
            }
        }
        // Transmit.
        while leaving.bytes < self.profile.capacity {
            let mut out = Vec::new();
            handler.transmit(clock, &mut out, TRANSMIT_BYTES, false);
            if out.is_empty() {
                break;
            }
            driven.broken = self.monitor.observe(is_client, &out).err();
            if leaving.discards {
                continue;
            }
            let jitter = Duration::from_nanos(pace.u64(..=self.profile.jitter.as_nanos() as u64));
            leaving.last = leaving.last.max(now + self.profile.delay + jitter);
            leaving.bytes += out.len();
            leaving.in_flight.push_back((leaving.last, Bytes::from(out)));
            driven.other = Some(leaving.last);
        }
        if leaving.bytes >= self.profile.capacity {
            handler.catch_up();
        }
        if let Some(error) = handler.error() {
            driven.ended = Some(error.into());
        } else if handler.is_finished() {
            driven.ended = Some(CloseReason::Finished);
        } else if arriving.in_flight.is_empty() && arriving.closed.is_some_and(|at| at <= now) {
            driven.ended = Some(CloseReason::Closed);
        }
        let next = [
            handler.poll_timeout().map(|at| self.begun + at.0),
            arriving
                .in_flight
                .front()
                .filter(|_| handler.wants_input())
                .map(|(at, _)| *at.max(&arriving.stalled_until)),
            arriving.closed.filter(|_| arriving.in_flight.is_empty()),
        ];
        driven.again = next.into_iter().flatten().min().map(|at| at.max(now));
        driven
    }
}
