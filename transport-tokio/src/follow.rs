//! Reading a blob while it arrives, without blocking the executor.

use std::future::Future;
use std::io::{self, ErrorKind, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use blobferry_cache::Follow as BlockingFollow;
use blobferry_protocol::BlobId;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes that one blocking read takes, at most.
const READ_SIZE: usize = 256 << 10;

/// A blob that is read while it is downloaded; from [`Client::follow_blob`](crate::Client::follow_blob).
///
/// Each read waits for bytes on the runtime's blocking pool, so the executor goes on. **The end is a promise**: it is
/// reported only after the whole blob was verified, and if the bytes that were read are the blob's. Otherwise reading
/// fails.
///
/// # Cancel safety
/// A dropped read loses no bytes: the next one returns them. After the drop of this value, a thread of the blocking pool
/// may still wait until more bytes arrive or the download fails.
///
/// # Panics
/// Reading panics outside of a tokio runtime.
#[derive(Debug)]
pub struct Follow {
    blob: BlobId,
    size: Option<u64>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The bytes from `start` on are still to be delivered.
    Idle {
        reader: Box<Reader>,
        start: usize,
    },
    Reading(JoinHandle<(Box<Reader>, io::Result<()>)>),
    /// A read has panicked.
    Failed,
}

/// What moves to the blocking pool and back.
#[derive(Debug)]
struct Reader {
    follow: BlockingFollow,
    bytes: Vec<u8>,
}

impl Reader {
    /// Waits for bytes. None means the end.
    fn fill(&mut self) -> io::Result<()> {
        self.bytes.resize(READ_SIZE, 0);
        let read = loop {
            match self.follow.read(&mut self.bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        read.map(drop)
    }
}

impl Follow {
    pub(crate) fn new(follow: BlockingFollow) -> Follow {
        let (blob, size) = (follow.blob(), follow.size());
        let reader = Box::new(Reader { follow, bytes: Vec::new() });
        Follow { blob, size, state: State::Idle { reader, start: 0 } }
    }

    /// Returns the blob.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Returns the size of the blob in bytes, if the last read has found it out. During a download this is the size
    /// that the server has announced.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }
}

impl AsyncRead for Follow {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.state, State::Failed) {
                State::Idle { reader, start } => {
                    let left = reader.bytes.get(start..).unwrap_or_default();
                    let taken = left.len().min(buffer.remaining());
                    if taken > 0 || buffer.remaining() == 0 {
                        buffer.put_slice(left.get(..taken).unwrap_or_default());
                        this.state = State::Idle { reader, start: start + taken };
                        return Poll::Ready(Ok(()));
                    }
                    let mut reader = reader;
                    this.state = State::Reading(spawn_blocking(move || {
                        let read = reader.fill();
                        (reader, read)
                    }));
                }
                State::Reading(mut reading) => {
                    let Poll::Ready(joined) = Pin::new(&mut reading).poll(context) else {
                        this.state = State::Reading(reading);
                        return Poll::Pending;
                    };
                    let (reader, read) = joined.map_err(io::Error::other)?;
                    this.size = reader.follow.size();
                    let is_end = reader.bytes.is_empty();
                    this.state = State::Idle { reader, start: 0 };
                    if read.is_err() || is_end {
                        return Poll::Ready(read);
                    }
                }
                State::Failed => {
                    return Poll::Ready(Err(io::Error::other("an earlier read has panicked")));
                }
            }
        }
    }
}
