//! A client and a server, joined by a simulated link.

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

/// The settings of a [`Pair`].
#[derive(Clone, Debug, Default)]
pub struct PairConfig {
    /// The client's connection.
    pub client: Config,
    /// The server's connection.
    pub server: Config,
    /// How the client moves payload.
    pub client_style: Style,
    /// How the server moves payload.
    pub server_style: Style,
    /// The link from the client to the server.
    pub up: Link,
    /// The link from the server to the client.
    pub down: Link,
}

/// A client and a server, joined by a simulated link with virtual time.
///
/// Bytes move only in [`run`](Pair::run), [`advance`](Pair::advance), [`step`](Pair::step) and
/// [`reconnect`](Pair::reconnect). The same calls produce the same run every time.
#[derive(Debug)]
pub struct Pair {
    /// The client's end.
    pub client: End<Client>,
    /// The server's end.
    pub server: End<Server>,
    config: PairConfig,
    now: Time,
    up: Wire,
    down: Wire,
}

impl Pair {
    /// Returns a client and a server that have exchanged no bytes yet.
    #[must_use]
    pub fn new(config: PairConfig) -> Pair {
        let now = Time::ZERO;
        Pair {
            client: End::new(client::Connection::new(now, config.client, &[]), config.client_style),
            server: End::new(server::Connection::new(now, config.server), config.server_style),
            now,
            up: Wire::new(config.up.clone()),
            down: Wire::new(config.down.clone()),
            config,
        }
    }

    /// Returns a client and a server whose handshake is done, and whose handshake events were
    /// polled.
    #[must_use]
    pub fn connected(config: PairConfig) -> Pair {
        let mut pair = Pair::new(config);
        pair.handshake();
        pair
    }

    fn handshake(&mut self) {
        self.run();
        assert!(matches!(self.server.event(), Some(server::Event::Hello { .. })), "the client says hello");
        assert_eq!(self.server.connection.welcome(Tid::ZERO), Ok(()));
        self.run();
        assert!(matches!(self.client.event(), Some(client::Event::Connected(_))), "the client is welcome");
    }

    /// Replaces both connections by new ones, and does their handshake.
    ///
    /// Bytes on the old link are lost, and so are the sources, the sinks and the events of both
    /// ends. The new client numbers its requests [after](client::Connection::after) those of the
    /// old one, so that it can attach to transactions. The links behave as in the [`PairConfig`],
    /// and the time goes on.
    pub fn reconnect(&mut self) {
        let (now, last) = (self.now, self.client.connection.last_request());
        let PairConfig { client, server, client_style, server_style, up, down } = self.config.clone();
        self.client = End::new(client::Connection::after(now, client, &[], last), client_style);
        self.server = End::new(server::Connection::new(now, server), server_style);
        (self.up, self.down) = (Wire::new(up), Wire::new(down));
        self.handshake();
    }

    /// Returns the virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// Lets each end send its control messages and at most one chunk, and then do one read. Time
    /// does not advance.
    ///
    /// Returns true if any bytes moved.
    pub fn step(&mut self) -> bool {
        let sent =
            [self.client.transmit(self.now, &mut self.up), self.server.transmit(self.now, &mut self.down)];
        let taken =
            [self.server.receive(self.now, &mut self.up), self.client.receive(self.now, &mut self.down)];
        sent.contains(&true) || taken.contains(&true)
    }

    /// Steps until no bytes move any more. Time advances as far as bytes need it to arrive.
    pub fn run(&mut self) {
        self.run_until(Time(Duration::MAX));
    }

    fn run_until(&mut self, end: Time) {
        loop {
            while self.step() {}
            let arrivals = [self.up.next_arrival(), self.down.next_arrival()];
            // Bytes that have arrived and were not read are for a dead connection.
            match arrivals.into_iter().flatten().filter(|arrival| *arrival > self.now).min() {
                Some(arrival) if arrival <= end => self.now = arrival,
                _ => break,
            }
        }
    }

    /// Advances the time: bytes arrive, and both connections handle their timeouts when those are
    /// due.
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

    /// Advances the time without any call, as if both processes had been stopped.
    pub fn oversleep(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Calls `handle_timeout` on both connections.
    pub fn handle_timeouts(&mut self) {
        self.client.handle_timeout(self.now);
        self.server.handle_timeout(self.now);
    }

    /// Cuts the link: nothing arrives any more, in either direction, until a
    /// [`reconnect`](Pair::reconnect).
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

    /// Sends these bytes to the server, in place of the client.
    pub fn inject_up(&mut self, bytes: Vec<u8>) {
        self.up.send(self.now, bytes);
    }

    /// Sends these bytes to the client, in place of the server.
    pub fn inject_down(&mut self, bytes: Vec<u8>) {
        self.down.send(self.now, bytes);
    }

    /// Starts an upload from the client.
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

    /// Answers a [`SendBlob`](crate::Request::SendBlob) with a blob, as the server.
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
