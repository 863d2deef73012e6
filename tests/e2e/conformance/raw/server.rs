//! A server over a plain socket that does what a test tells it, be it right or wrong.

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::decode::{Fields, read_body};
use super::encode::{Body, Limits, message};
use super::patient;

/// Listens until it is dropped. Every connection is treated in the same way, one after another.
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
    /// Treats each connection so; it is closed afterwards.
    pub(super) fn new(treat: impl Fn(&mut Caller) + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let stream = patient(stream.unwrap());
                let reader = BufReader::new(stream.try_clone().unwrap());
                treat(&mut Caller { stream, reader });
            }
        });
        Server { address, over, accepting: Some(accepting) }
    }

    /// The same, after a proper handshake.
    pub(super) fn after_welcome(treat: impl Fn(&mut Caller) + Send + 'static) -> Server {
        Server::new(move |caller| {
            assert_eq!(caller.receive().unwrap()[0], message::HELLO);
            caller.send(Body::welcome(Limits::DEFAULT, 0));
            treat(caller);
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // One that comes is seen to be the last.
        let _ = TcpStream::connect(&self.address);
        let ended = self.accepting.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

impl Caller {
    /// The body of the next message; `None` where the client has gone.
    pub(super) fn receive(&mut self) -> Option<Vec<u8>> {
        read_body(&mut self.reader).ok().flatten()
    }

    /// The id of the next request.
    pub(super) fn request(&mut self) -> u64 {
        self.request_or_end().unwrap()
    }

    /// The same; `None` where the client has gone.
    pub(super) fn request_or_end(&mut self) -> Option<u64> {
        let body = self.receive()?;
        let mut fields = Fields::of(&body);
        assert_eq!(fields.array(), [message::REQUEST]);
        Some(fields.int())
    }

    pub(super) fn send(&mut self, body: Body) {
        self.write(&body.frame());
    }

    /// The client may have gone when it has heard enough.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// A chunk of a blob, with its bytes.
    pub(super) fn chunk(&mut self, transfer: u64, offset: u64, bytes: &[u8]) {
        self.send(Body::blob_chunk(transfer, offset, bytes.len() as u64));
        self.write(bytes);
    }

    /// Waits until the client closes the connection.
    pub(super) fn wait_for_the_end(&mut self) {
        while self.receive().is_some() {}
    }
}
