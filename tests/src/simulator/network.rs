//! The network: connections whose bytes take their time, come in pieces, get stuck, get lost, or never come.

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

use super::tap::Tap;
use super::world::Pid;

/// Bytes that an end gives away at once.
const ENOUGH: usize = 16 << 10;

/// So many of the bytes that arrive come in pieces as small as the manner says.
const CRUMBS: usize = 20_000;

/// How a connection's bytes travel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// The least time on the way.
    pub(super) delay: Duration,
    /// And so much more by chance.
    pub(super) jitter: Duration,
    /// Bytes that may be on their way.
    pub(super) capacity: usize,
    /// The most bytes that arrive as one.
    pub(super) piece: usize,
}

impl Manner {
    /// One by chance: most links are decent.
    pub(super) fn by(chance: &mut Rng) -> Manner {
        Manner {
            delay: Duration::from_micros(chance.u64(20..5000)),
            jitter: Duration::from_micros(chance.u64(..3000)),
            capacity: [1 << 10, 8 << 10, 64 << 10, 256 << 10][chance.usize(..4)],
            piece: match chance.u8(..16) {
                0 => 1,
                1 => 7,
                2..5 => 1000,
                _ => usize::MAX,
            },
        }
    }
}

/// One direction.
#[derive(Default)]
struct Way {
    flying: VecDeque<(Duration, Bytes)>,
    bytes: usize,
    /// Nothing arrives before.
    stuck: Duration,
    /// What is sent is lost, and nobody is told.
    swallows: bool,
    /// When the receiver learns that the sender is gone.
    closed: Option<Duration>,
    last: Duration,
    /// Bytes that have arrived.
    arrived: usize,
}

/// What drives an end.
pub(super) enum Seat {
    Client(client::Handler),
    Server(Box<server::Handler>),
}

impl Seat {
    fn endpoint(&mut self) -> &mut dyn ConnectionHandler {
        match self {
            Seat::Client(endpoint) => endpoint,
            Seat::Server(session) => session.as_mut(),
        }
    }
}

/// One end of a connection.
pub(super) struct Chair {
    pub(super) pid: Pid,
    pub(super) seat: Seat,
    pub(super) woken: Arc<AtomicBool>,
    /// A visit is planned for this moment at the latest.
    pub(super) visit: Option<Duration>,
}

/// A connection.
pub(super) struct Connection {
    pub(super) client: Option<Chair>,
    pub(super) server: Option<Chair>,
    begun: Duration,
    up: Way,
    down: Way,
    manner: Manner,
    pub(super) tap: Tap,
}

/// What came of driving an end.
pub(super) struct Driven {
    /// When it wants to be driven again, without anything happening.
    pub(super) again: Option<Duration>,
    /// Its connection is over for it.
    pub(super) ended: Option<CloseReason>,
    /// The other end has something to look at, at this moment.
    pub(super) other: Option<Duration>,
    /// A rule that was broken.
    pub(super) broken: Option<String>,
}

impl Connection {
    pub(super) fn new(begun: Duration, manner: Manner) -> Connection {
        Connection {
            client: None,
            server: None,
            begun,
            up: Way::default(),
            down: Way::default(),
            manner,
            tap: Tap::default(),
        }
    }

    /// The machine's clock of a connection.
    pub(super) fn clock(&self, now: Duration) -> Time {
        Time(now.saturating_sub(self.begun))
    }

    pub(super) fn chair(&mut self, is_client: bool) -> &mut Option<Chair> {
        if is_client { &mut self.client } else { &mut self.server }
    }

    /// Has the server a commit in hand?
    pub(super) fn brings_commit(&self) -> bool {
        self.up.flying.is_empty() && self.tap.is_committing()
    }

    /// Nothing arrives for a while, on the way to the client or to the server.
    pub(super) fn stick(&mut self, to_client: bool, until: Duration) {
        let way = if to_client { &mut self.down } else { &mut self.up };
        way.stuck = way.stuck.max(until);
    }

    /// From now on what is sent that way is lost, without a word.
    pub(super) fn swallow(&mut self, to_client: bool) {
        let way = if to_client { &mut self.down } else { &mut self.up };
        way.swallows = true;
        way.flying.clear();
        way.bytes = 0;
    }

    /// Both ends learn, sooner or later, that there is no connection any more.
    pub(super) fn cut(&mut self, now: Duration, chance: &mut Rng) -> [Duration; 2] {
        let mut told = [now, now];
        for (way, told) in [&mut self.up, &mut self.down].into_iter().zip(&mut told) {
            // What is on its way arrives, or a part of it, or nothing.
            way.flying.truncate(chance.usize(..=way.flying.len()));
            way.bytes = way.flying.iter().map(|(_, bytes)| bytes.len()).sum();
            *told += Duration::from_micros(chance.u64(..20_000));
            way.swallows = true;
            way.closed.get_or_insert(*told);
        }
        told
    }

    /// One end has gone: the other learns that behind all that it has said.
    pub(super) fn leave(&mut self, is_client: bool, now: Duration) -> Duration {
        *self.chair(is_client) = None;
        let delay = self.manner.delay;
        let way = if is_client { &mut self.up } else { &mut self.down };
        let at = way.last.max(now + delay);
        if !way.swallows {
            way.closed.get_or_insert(at);
        }
        // Nobody reads any more what comes the other way.
        let back = if is_client { &mut self.down } else { &mut self.up };
        back.swallows = true;
        back.flying.clear();
        back.bytes = 0;
        at
    }

    /// Drives an end: takes what has arrived, says what there is to say.
    pub(super) fn drive(&mut self, is_client: bool, now: Duration, pace: &mut Rng) -> Driven {
        let clock = self.clock(now);
        let mut driven = Driven { again: None, ended: None, other: None, broken: None };
        let (chair, arriving, leaving) = match is_client {
            true => (&mut self.client, &mut self.down, &mut self.up),
            false => (&mut self.server, &mut self.up, &mut self.down),
        };
        let Some(chair) = chair else { return driven };
        chair.woken.store(false, Ordering::SeqCst);
        let endpoint = chair.seat.endpoint();
        if endpoint.poll_timeout().is_some_and(|at| at <= clock)
            && let Err(error) = endpoint.handle_timeout(clock)
        {
            driven.ended = Some(error.into());
            return driven;
        }
        // What has arrived.
        while endpoint.wants_input() && arriving.stuck <= now {
            let Some((at, mut bytes)) = arriving.flying.pop_front() else { break };
            if at > now {
                arriving.flying.push_front((at, bytes));
                break;
            }
            // Crumbs are tried for a while: they take their time here, too.
            let piece = if arriving.arrived < CRUMBS { self.manner.piece } else { usize::MAX };
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
                arriving.flying.push_front((at, rest));
            }
            if let Err(error) = endpoint.receive(clock, bytes) {
                driven.ended = Some(error.into());
                return driven;
            }
        }
        // What there is to say.
        while leaving.bytes < self.manner.capacity {
            let mut out = Vec::new();
            endpoint.transmit(clock, &mut out, ENOUGH, false);
            if out.is_empty() {
                break;
            }
            driven.broken = self.tap.hear(is_client, &out).err();
            if leaving.swallows {
                continue;
            }
            let jitter = Duration::from_nanos(pace.u64(..=self.manner.jitter.as_nanos() as u64));
            leaving.last = leaving.last.max(now + self.manner.delay + jitter);
            leaving.bytes += out.len();
            leaving.flying.push_back((leaving.last, Bytes::from(out)));
            driven.other = Some(leaving.last);
        }
        if leaving.bytes >= self.manner.capacity {
            endpoint.catch_up();
        }
        if let Some(error) = endpoint.error() {
            driven.ended = Some(error.into());
        } else if endpoint.is_finished() {
            driven.ended = Some(CloseReason::Finished);
        } else if arriving.flying.is_empty() && arriving.closed.is_some_and(|at| at <= now) {
            driven.ended = Some(CloseReason::Closed);
        }
        let next = [
            endpoint.poll_timeout().map(|at| self.begun + at.0),
            arriving
                .flying
                .front()
                .filter(|_| endpoint.wants_input())
                .map(|(at, _)| *at.max(&arriving.stuck)),
            arriving.closed.filter(|_| arriving.flying.is_empty()),
        ];
        driven.again = next.into_iter().flatten().min().map(|at| at.max(now));
        driven
    }
}
