//! A server over a plain socket that runs a test's script, valid or not.

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::decode::{Fields, read_body};
use super::encode::{Body, Limits, message};
use super::with_timeouts;

/// A server that runs the same script on every connection, one after another, until it is dropped.
pub(super) struct Server {
    pub(super) address: String,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// One connection, from the server's side.
pub(super) struct Caller {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Server {
    /// Runs `script` on each connection and closes it afterwards.
    pub(super) fn new(script: impl Fn(&mut Caller) + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let stream = with_timeouts(stream.unwrap());
                let reader = BufReader::new(stream.try_clone().unwrap());
                script(&mut Caller { stream, reader });
            }
        });
        Server { address, over, accepting: Some(accepting) }
    }

    /// Like [`Server::new`], after a valid handshake.
    pub(super) fn after_welcome(script: impl Fn(&mut Caller) + Send + 'static) -> Server {
        Server::new(move |caller| {
            assert_eq!(caller.receive().unwrap()[0], message::HELLO);
            caller.send(Body::welcome(Limits::DEFAULT, 0));
            script(caller);
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(&self.address);
        let ended = self.accepting.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

impl Caller {
    /// Returns the body of the next message, or `None` if the client has disconnected.
    pub(super) fn receive(&mut self) -> Option<Vec<u8>> {
        read_body(&mut self.reader).ok().flatten()
    }

    /// Returns the id of the next request.
    pub(super) fn request(&mut self) -> u64 {
        self.request_or_end().unwrap()
    }

    /// Like [`Caller::request`], or `None` if the client has disconnected or said goodbye.
    pub(super) fn request_or_end(&mut self) -> Option<u64> {
        let body = self.receive()?;
        let mut fields = Fields::of(&body);
        let [kind] = fields.array();
        if kind == message::GOODBYE {
            return None;
        }
        assert_eq!(kind, message::REQUEST);
        Some(fields.int())
    }

    pub(super) fn send(&mut self, body: Body) {
        self.write(&body.frame());
    }

    /// Writes bytes. The client may have disconnected already.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a chunk of a blob with its bytes.
    pub(super) fn chunk(&mut self, transfer: u64, offset: u64, bytes: &[u8]) {
        self.send(Body::blob_chunk(transfer, offset, bytes.len() as u64));
        self.write(bytes);
    }

    /// Waits until the client closes the connection.
    pub(super) fn wait_for_the_end(&mut self) {
        while self.receive().is_some() {}
    }
}
