//! Reading from a socket into buffers that are used again.
//!
//! What is read is handed on as [`Bytes`], and may be held for a while by whoever writes it to a disk. Large buffers
//! come back when they are let go, because new memory for each would cost more than the reading. Small ones are not
//! worth that, and a connection that is idle holds none of either.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::drive::Ended;

/// Bytes that are read at once from a socket that has much to say.
const LARGE: usize = 256 << 10;
/// The same while it has little to say.
const SMALL: usize = 8 << 10;
/// Large buffers that are kept while nobody uses them.
const SPARE: usize = 8;

#[derive(Default)]
pub(crate) struct Input {
    /// The last read filled its buffer: there is much to say.
    busy: bool,
    spare: Arc<Spare>,
}

#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Input {
    /// Reads once; `None` if there was nothing to read.
    pub(crate) fn read(&mut self, stream: &TcpStream) -> Result<Option<Bytes>, Ended> {
        let mut buffer = if self.busy { self.spare.take() } else { vec![0; SMALL] };
        match stream.try_read(&mut buffer) {
            Ok(0) => Err(Ended::Closed),
            Ok(n) => {
                let full = n == buffer.len();
                let bytes = if self.busy {
                    let spare = self.spare.clone();
                    Bytes::from_owner(Lent { buffer, spare }).slice(..n)
                } else {
                    buffer.truncate(n);
                    Bytes::from(buffer)
                };
                self.busy = full || self.busy && n > SMALL;
                Ok(Some(bytes))
            }
            Err(error) => {
                if self.busy {
                    self.spare.put(buffer);
                }
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error.into()),
                }
            }
        }
    }

    /// The connection has been idle for a while: it keeps nothing.
    pub(crate) fn release(&mut self) {
        self.busy = false;
        self.spare.clear();
    }
}

impl Spare {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<Vec<u8>>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self) -> Vec<u8> {
        self.with(Vec::pop).unwrap_or_else(|| vec![0; LARGE])
    }

    fn put(&self, buffer: Vec<u8>) {
        self.with(|spare| {
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        });
    }

    fn clear(&self) {
        self.with(|spare| *spare = Vec::new());
    }
}

/// A large buffer that is read from; dropped, it is spare again.
struct Lent {
    buffer: Vec<u8>,
    spare: Arc<Spare>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.spare.put(std::mem::take(&mut self.buffer));
    }
}
