//! A client and a server, and the link between them.

use core::time::Duration;
use std::vec::Vec;

use crate::client;
use crate::client::Client;
use crate::connection::Config;
use crate::error::UsageError;
use crate::ids::{Oid, Tid, TransferId, TxnId};
use crate::server;
use crate::server::Server;
use crate::testing::end::{End, Source, Style, digest_of};
use crate::testing::link::{Link, Wire};
use crate::time::Time;

/// What a [`Pair`] is made of.
#[derive(Clone, Debug, Default)]
pub struct PairConfig {
    /// The client's machine.
    pub client: Config,
    /// The server's machine.
    pub server: Config,
    /// How the client moves payload.
    pub client_style: Style,
    /// How the server moves payload.
    pub server_style: Style,
    /// From the client to the server.
    pub up: Link,
    /// From the server to the client.
    pub down: Link,
}

/// A client's and a server's machine, joined by a simulated link with virtual time.
///
/// Nothing happens but in [`run`](Pair::run), [`advance`](Pair::advance) and [`step`](Pair::step), and the same calls
/// give the same run every time.
#[derive(Debug)]
pub struct Pair {
    /// The client's end.
    pub client: End<Client>,
    /// The server's end.
    pub server: End<Server>,
    now: Time,
    up: Wire,
    down: Wire,
}

impl Pair {
    /// Two machines that have not spoken yet.
    #[must_use]
    pub fn new(config: PairConfig) -> Pair {
        let now = Time::ZERO;
        Pair {
            client: End::new(client::Connection::new(now, config.client, &[]), config.client_style),
            server: End::new(server::Connection::new(now, config.server), config.server_style),
            now,
            up: Wire::new(config.up),
            down: Wire::new(config.down),
        }
    }

    /// Two machines whose handshake is done, and whose events of it were taken.
    #[must_use]
    pub fn connected(config: PairConfig) -> Pair {
        let mut pair = Pair::new(config);
        pair.run();
        assert!(matches!(pair.server.event(), Some(server::Event::Hello { .. })), "the client says hello");
        assert_eq!(pair.server.connection.welcome(Tid::ZERO), Ok(()));
        pair.run();
        assert!(matches!(pair.client.event(), Some(client::Event::Connected(_))), "the client is welcome");
        pair
    }

    /// The moment it is.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// Each end sends one run of control messages and a chunk at most, and takes one read. Time stands still. Says
    /// whether anything moved.
    pub fn step(&mut self) -> bool {
        let sent =
            [self.client.transmit(self.now, &mut self.up), self.server.transmit(self.now, &mut self.down)];
        let taken =
            [self.server.receive(self.now, &mut self.up), self.client.receive(self.now, &mut self.down)];
        sent.contains(&true) || taken.contains(&true)
    }

    /// Goes on until nothing moves any more; time passes as far as bytes need it to arrive.
    pub fn run(&mut self) {
        self.run_until(Time(Duration::MAX));
    }

    fn run_until(&mut self, end: Time) {
        loop {
            while self.step() {}
            let arrivals = [self.up.next_arrival(), self.down.next_arrival()];
            // What has arrived and was not read is for one who is dead.
            match arrivals.into_iter().flatten().filter(|arrival| *arrival > self.now).min() {
                Some(arrival) if arrival <= end => self.now = arrival,
                _ => break,
            }
        }
    }

    /// Lets time pass: bytes arrive, and both machines hear of their timeouts when those are due.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timeouts = [self.client.connection.poll_timeout(), self.server.connection.poll_timeout()];
            let due = timeouts.into_iter().flatten().min().map_or(end, |due| due.min(end));
            self.run_until(due);
            if due >= end {
                self.now = end;
                break;
            }
            self.now = self.now.max(due);
            self.handle_timeouts();
        }
        self.handle_timeouts();
        self.run_until(end);
    }

    /// Lets time pass without anybody noticing, as if the machine that both run on had been asleep.
    pub fn oversleep(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Calls `handle_timeout` on both machines.
    pub fn handle_timeouts(&mut self) {
        self.client.handle_timeout(self.now);
        self.server.handle_timeout(self.now);
    }

    /// From now on nothing arrives any more, in either direction.
    pub fn cut(&mut self) {
        self.up.cut();
        self.down.cut();
    }

    /// Changes the link to the server.
    pub fn set_up(&mut self, link: Link) {
        self.up.set(link);
    }

    /// Changes the link to the client.
    pub fn set_down(&mut self, link: Link) {
        self.down.set(link);
    }

    /// The client speaks these bytes, whatever its machine has to say.
    pub fn inject_up(&mut self, bytes: Vec<u8>) {
        self.up.send(self.now, bytes);
    }

    /// The server speaks these bytes, whatever its machine has to say.
    pub fn inject_down(&mut self, bytes: Vec<u8>) {
        self.down.send(self.now, bytes);
    }

    /// The client stores an object with a blob.
    ///
    /// # Errors
    /// Those of [`upload`](client::Connection::upload).
    pub fn upload(
        &mut self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        source: Source,
    ) -> Result<TransferId, UsageError> {
        let size = source.bytes.len() as u64;
        let digest = digest_of(&source.bytes);
        let known = (!source.digest_at_end).then_some(digest);
        let transfer = self.client.connection.upload(txn, oid, base, Vec::new(), size, known)?;
        if size == 0 && source.digest_at_end {
            self.client.connection.finish_blob(transfer, digest)?;
        }
        self.client.sources.insert(transfer, source);
        Ok(transfer)
    }

    /// The server answers a [`SendBlob`](crate::Request::SendBlob) with a blob.
    ///
    /// # Errors
    /// Those of [`start_blob`](server::Connection::start_blob).
    pub fn serve(&mut self, transfer: TransferId, source: Source) -> Result<(), UsageError> {
        let (size, digest) = (source.bytes.len() as u64, digest_of(&source.bytes));
        self.server.connection.start_blob(transfer, size, digest)?;
        self.server.sources.insert(transfer, source);
        Ok(())
    }
}
