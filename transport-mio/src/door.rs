//! A server's door: lets connections in, and spreads them over the loops.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Instant;

use blobferry_cache::carry::{Carrier, Ended};
use blobferry_store::session::{Service, Session};
use mio::net::{TcpListener, TcpStream};

use crate::bell::Remote;
use crate::connection::Connection;

/// Connections that are let in at once, before those that are in have their turn.
const AT_ONCE: usize = 64;

/// A listener, and where its connections go.
pub(crate) struct Door {
    pub(crate) listener: TcpListener,
    pub(crate) service: Service,
    pub(crate) loops: Vec<Remote<Session>>,
    /// Somebody may wait before it: known only when nobody did.
    pub(crate) knocked: bool,
    /// It stays shut until then.
    pub(crate) shut: Option<Instant>,
}

impl Door {
    /// Lets in who waits; when to be called again without a knock.
    pub(crate) fn open(&mut self, knocked: bool) -> Option<Instant> {
        self.knocked |= knocked;
        if self.shut.is_some_and(|until| Instant::now() < until) {
            return self.shut;
        }
        self.shut = None;
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((stream, peer)) => self.let_in(stream, peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.knocked = false;
                    break;
                }
                Err(error) => {
                    let pause = self.service.not_accepted(&error);
                    if !pause.is_zero() {
                        self.shut = Some(Instant::now() + pause);
                        return self.shut;
                    }
                }
            }
        }
        self.knocked.then(Instant::now)
    }

    fn let_in(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = self.bring(stream, peer) {
            Ended::Stream(error).log(peer);
        }
    }

    /// Brings a connection to the loop that has the fewest.
    fn bring(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let Some(remote) = self.loops.iter().min_by_key(|remote| remote.load()) else { return Ok(()) };
        let bell = remote.bell();
        let wake = bell.clone();
        let carrier = Carrier::begin(&stream, |now| Session::new(&self.service, now, move || wake.ring()))?;
        remote.join(&bell, Connection::new(stream, carrier, Box::new(move |ended| ended.log(peer))));
        Ok(())
    }
}
