//! Payload between connections and files: sinks for transfers that arrive, sources for those that leave.
//!
//! Both halves of the conversation use it, and every transport: a client's downloads and a server's uploads are sinks
//! alike. Bytes that arrive are handed to a [`Lane`] at once, so the thread with the sockets never waits for a disk;
//! what the sink has taken is reported back, and that, through credit, is what keeps memory flat.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use blobferry_protocol::{Digest, PeerError, RequestError, Slice, Time, TransferEvent, TransferId};
use bytes::Bytes;

use crate::workers::{Lane, Workers};

/// What a transport drives: one end of a connection, with everything behind it. The transport adds a socket, its
/// readiness, and a timer.
pub trait Endpoint {
    /// Appends what is to be sent to `out` until that holds at least `enough` bytes or there is nothing to send now.
    fn transmit(&mut self, now: Time, out: &mut Vec<u8>, enough: usize);

    /// Takes bytes that have arrived.
    ///
    /// # Errors
    /// The rule that the peer broke: close the socket.
    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError>;

    /// May more bytes be read from the socket now? While not, what has arrived is being worked off, and the end of
    /// that is reported like any other news: by the wake-up that the endpoint was made with.
    fn wants_input(&self) -> bool;

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    fn poll_timeout(&self) -> Option<Time>;

    /// Does what is due.
    ///
    /// # Errors
    /// The peer is gone: close the socket.
    fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError>;

    /// Has the conversation come to its end, so that the socket can be closed?
    fn is_finished(&self) -> bool;
}

/// Where the bytes of one transfer go. Called on threads that may block, one call at a time, in order.
///
/// A sink that fails says so itself to whoever waits for it, and answers `false`: the rest is dropped.
pub trait Sink: Send {
    /// The transfer begins: bytes `from..end` of a blob of `size` bytes will come.
    fn start(&mut self, from: u64, end: u64, size: u64) -> bool;
    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> bool;
    /// All bytes have come; they are worth something only if the blob has this digest.
    fn stop(self: Box<Self>, digest: Digest);
    /// The transfer failed, or with `None` the connection did.
    fn abort(self: Box<Self>, reason: Option<RequestError>);
}

/// What an inlet reports, from any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The sink has taken all bytes below this offset.
    Stored {
        /// The transfer.
        transfer: TransferId,
        /// The offset.
        upto: u64,
    },
    /// The sink takes no more.
    Failed {
        /// The transfer.
        transfer: TransferId,
    },
}

/// The sinks of one connection.
pub struct Inlets {
    workers: Workers,
    report: Arc<dyn Fn(Report) + Send + Sync>,
    inlets: BTreeMap<TransferId, Inlet>,
}

struct Inlet {
    lane: Lane,
    /// `None` when the sink has failed or is done.
    sink: Arc<Mutex<Option<Box<dyn Sink>>>>,
}

impl std::fmt::Debug for Inlets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.inlets.keys()).finish()
    }
}

impl Inlets {
    /// No sinks yet. `report` is called from the workers.
    #[must_use]
    pub fn new(workers: &Workers, report: Arc<dyn Fn(Report) + Send + Sync>) -> Inlets {
        Inlets { workers: workers.clone(), report, inlets: BTreeMap::new() }
    }

    /// Has a sink ready for a transfer that may begin.
    pub fn expect(&mut self, transfer: TransferId, sink: Box<dyn Sink>) {
        let sink = Arc::new(Mutex::new(Some(sink)));
        self.inlets.insert(transfer, Inlet { lane: Lane::new(&self.workers), sink });
    }

    /// Passes on what the connection says about a transfer.
    pub fn event(&mut self, event: TransferEvent) {
        match event {
            TransferEvent::Started { transfer, from, end, size, .. } => {
                let Some(inlet) = self.inlets.get(&transfer) else { return };
                let (sink, report) = (inlet.sink.clone(), self.report.clone());
                inlet.lane.run(move || attempt(&sink, &report, transfer, |sink| sink.start(from, end, size)));
            }
            TransferEvent::Stopped { transfer, digest } => {
                let Some(inlet) = self.inlets.remove(&transfer) else { return };
                inlet.lane.run(move || {
                    if let Some(sink) = take(&inlet.sink) {
                        sink.stop(digest);
                    }
                });
            }
            TransferEvent::Aborted { transfer, reason } => self.abort(transfer, Some(reason)),
        }
    }

    /// Gives up a transfer, whether it has begun or not; with `None` because the connection is gone.
    pub fn abort(&mut self, transfer: TransferId, reason: Option<RequestError>) {
        let Some(inlet) = self.inlets.remove(&transfer) else { return };
        inlet.lane.run(move || {
            if let Some(sink) = take(&inlet.sink) {
                sink.abort(reason);
            }
        });
    }

    /// Gives up every transfer: the connection is gone.
    pub fn abort_all(&mut self) {
        while let Some(transfer) = self.inlets.keys().next().copied() {
            self.abort(transfer, None);
        }
    }

    /// Drops the sink of a transfer that has failed by itself.
    pub fn remove(&mut self, transfer: TransferId) {
        self.inlets.remove(&transfer);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inlets.len()
    }

    /// Passes on payload. Bytes that nobody has a sink for are dropped.
    pub fn payload(&mut self, slice: Slice, bytes: Bytes) {
        let Some(inlet) = self.inlets.get(&slice.transfer) else { return };
        let (sink, report) = (inlet.sink.clone(), self.report.clone());
        inlet.lane.run(move || {
            attempt(&sink, &report, slice.transfer, |sink| sink.write(&bytes));
            drop(bytes);
            report(Report::Stored { transfer: slice.transfer, upto: slice.offset + slice.len });
        });
    }
}

type Slot = Mutex<Option<Box<dyn Sink>>>;

fn take(slot: &Slot) -> Option<Box<dyn Sink>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Lets a sink do something; where it fails, drops it and says so.
fn attempt(
    slot: &Slot,
    report: &Arc<dyn Fn(Report) + Send + Sync>,
    transfer: TransferId,
    act: impl FnOnce(&mut dyn Sink) -> bool,
) {
    // Only this lane uses the sink: taking it out keeps a panic in it from being met twice.
    let Some(mut sink) = take(slot) else { return };
    if act(sink.as_mut()) {
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(sink);
    } else {
        report(Report::Failed { transfer });
    }
}

/// How far a transfer is, in bytes of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have been moved.
    pub done: u64,
    /// Bytes there are.
    pub total: u64,
}

/// Told of the progress of a transfer, from any thread, often: it must not block.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Where the bytes of one transfer come from.
pub struct Source {
    bytes: SourceBytes,
    end: u64,
    hasher: Option<Box<blake3::Hasher>>,
    /// The file must be like this when the last byte was read.
    unchanged: Option<Stamp>,
    progress: Option<OnProgress>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({:?} up to {})", self.bytes, self.end)
    }
}

#[derive(Debug)]
enum SourceBytes {
    Memory(Bytes),
    File(File),
}

/// What a file looks like that nobody writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// What the file looks like now.
    ///
    /// # Errors
    /// The file system's.
    pub fn of(file: &File) -> std::io::Result<Stamp> {
        let meta = file.metadata()?;
        Ok(Stamp { size: meta.len(), modified: meta.modified().ok() })
    }

    /// The file's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Source {
    /// A file that is read up to the offset `end`.
    #[must_use]
    pub fn file(file: File, end: u64) -> Source {
        Source { bytes: SourceBytes::File(file), end, hasher: None, unchanged: None, progress: None }
    }

    /// Bytes in memory; offsets are those of the whole blob, `end` is where reading stops.
    #[must_use]
    pub fn memory(bytes: Bytes, end: u64) -> Source {
        Source { bytes: SourceBytes::Memory(bytes), end, hasher: None, unchanged: None, progress: None }
    }

    /// Hashes the bytes as they are read, all of them from 0 on.
    #[must_use]
    pub fn hashed(mut self) -> Source {
        self.hasher = Some(Box::default());
        self
    }

    /// Fails if the file does not look like this any more when its last byte was read.
    #[must_use]
    pub fn unchanged(mut self, stamp: Stamp) -> Source {
        self.unchanged = Some(stamp);
        self
    }

    /// Tells how far it is after every read.
    #[must_use]
    pub fn on_progress(mut self, progress: Option<OnProgress>) -> Source {
        self.progress = progress;
        self
    }

    fn read(&mut self, slice: Slice, into: &mut [u8]) -> Result<(), RequestError> {
        let failed = |detail: String| RequestError::Source { detail };
        match &self.bytes {
            SourceBytes::Memory(bytes) => {
                let start = usize::try_from(slice.offset).unwrap_or(usize::MAX);
                let part = bytes.get(start..start.saturating_add(into.len()));
                into.copy_from_slice(part.ok_or_else(|| failed("it is shorter than announced".into()))?);
            }
            SourceBytes::File(file) => file.read_exact_at(into, slice.offset).map_err(|error| {
                failed(match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => "the file became shorter while it was read".into(),
                    _ => format!("the file can not be read: {error}"),
                })
            })?,
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(into);
        }
        if let Some(progress) = &self.progress {
            progress(Progress { done: slice.offset + slice.len, total: self.end });
        }
        if let (SourceBytes::File(file), Some(before)) = (&self.bytes, self.unchanged) {
            let last = slice.offset + slice.len == self.end;
            if last && Stamp::of(file).ok() != Some(before) {
                return Err(failed("the file was changed while it was read".into()));
            }
        }
        Ok(())
    }
}

/// A source that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The transfer.
    pub transfer: TransferId,
    /// The digest of its bytes, where they were hashed.
    pub digest: Option<Digest>,
}

/// The sources of one connection.
#[derive(Debug, Default)]
pub struct Outlets {
    outlets: BTreeMap<TransferId, Source>,
    drained: Vec<Drained>,
}

impl Outlets {
    /// Has the source of a transfer that has begun. One without bytes must not be inserted.
    pub fn insert(&mut self, transfer: TransferId, source: Source) {
        self.outlets.insert(transfer, source);
    }

    /// Drops the source of a transfer that is over.
    pub fn remove(&mut self, transfer: TransferId) {
        self.outlets.remove(&transfer);
    }

    /// Reads what is to be sent.
    ///
    /// # Errors
    /// Why the source fails: abort the transfer with it. The source is dropped.
    pub fn read(&mut self, slice: Slice, into: &mut [u8]) -> Result<(), RequestError> {
        let transfer = slice.transfer;
        let source = self.outlets.get_mut(&transfer);
        let source = source.ok_or_else(|| RequestError::Source { detail: "it is gone".into() })?;
        let read = source.read(slice, into);
        let done = slice.offset + slice.len == source.end;
        if done || read.is_err() {
            let hasher = self.outlets.remove(&transfer).and_then(|source| source.hasher);
            if read.is_ok() {
                let digest = hasher.map(|hasher| Digest(*hasher.finalize().as_bytes()));
                self.drained.push(Drained { transfer, digest });
            }
        }
        read
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.outlets.len()
    }

    /// The sources that were read to their ends since the last call.
    pub fn take_drained(&mut self) -> Vec<Drained> {
        std::mem::take(&mut self.drained)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{self, Sender};

    use super::*;

    const T: TransferId = TransferId(1);

    fn slice(offset: u64, len: u64) -> Slice {
        Slice { transfer: T, offset, len }
    }

    fn outlets(source: Source) -> Outlets {
        let mut outlets = Outlets::default();
        outlets.insert(T, source);
        outlets
    }

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, File) {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(bytes).unwrap();
        let file = named.reopen().unwrap();
        (named, file)
    }

    #[test]
    fn a_source_is_read_in_pieces_and_hashed_on_the_way() {
        let (_named, file) = file(b"hello world");
        let mut outlets = outlets(Source::file(file, 11).hashed());
        let mut piece = [0; 6];
        outlets.read(slice(0, 6), &mut piece).unwrap();
        assert_eq!(&piece, b"hello ");
        assert_eq!(outlets.take_drained(), []);
        outlets.read(slice(6, 5), &mut piece[..5]).unwrap();
        let digest = Some(Digest(*blake3::hash(b"hello world").as_bytes()));
        assert_eq!(outlets.take_drained(), [Drained { transfer: T, digest }]);
        assert_eq!(outlets.count(), 0);
    }

    #[test]
    fn a_file_that_has_become_shorter_fails() {
        let (named, file) = file(b"hello world");
        named.as_file().set_len(5).unwrap();
        let mut outlets = outlets(Source::file(file, 11));
        let error = outlets.read(slice(0, 11), &mut [0; 11]).unwrap_err();
        assert!(error.to_string().contains("shorter"), "{error}");
        assert_eq!((outlets.count(), outlets.take_drained()), (0, Vec::new()));
    }

    #[test]
    fn a_file_that_was_written_to_fails_at_its_end() {
        let (mut named, file) = file(b"hello world");
        let stamp = Stamp::of(&file).unwrap();
        let mut outlets = outlets(Source::file(file, 11).unchanged(stamp));
        outlets.read(slice(0, 5), &mut [0; 5]).unwrap();
        named.write_all(b" and more").unwrap();
        let error = outlets.read(slice(5, 6), &mut [0; 6]).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
    }

    #[test]
    fn bytes_in_memory_are_never_read_beyond_their_end() {
        let mut outlets = outlets(Source::memory(Bytes::from_static(b"hello"), 5));
        assert!(outlets.read(slice(3, 4), &mut [0; 4]).is_err());
    }

    /// Says what happens to it; fails at the byte `!`.
    struct Teller(Sender<String>);

    impl Sink for Teller {
        fn start(&mut self, from: u64, end: u64, size: u64) -> bool {
            self.0.send(format!("start {from}..{end} of {size}")).is_ok()
        }
        fn write(&mut self, bytes: &[u8]) -> bool {
            self.0.send(format!("write {}", String::from_utf8_lossy(bytes))).is_ok() && bytes != b"!"
        }
        fn stop(self: Box<Self>, _: Digest) {
            self.0.send("stop".into()).unwrap();
        }
        fn abort(self: Box<Self>, reason: Option<RequestError>) {
            self.0.send(format!("abort {reason:?}")).unwrap();
        }
    }

    fn inlets() -> (Inlets, mpsc::Receiver<String>, mpsc::Receiver<Report>) {
        let (report, reports) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let mut inlets = Inlets::new(&Workers::new(2), Arc::new(move |what| report.send(what).unwrap()));
        inlets.expect(T, Box::new(Teller(tell)));
        inlets.event(TransferEvent::Started { transfer: T, from: 0, end: 3, size: 3, digest: None });
        (inlets, told, reports)
    }

    #[test]
    fn a_sink_is_told_everything_in_order_and_what_it_took_is_reported() {
        let (mut inlets, told, reports) = inlets();
        inlets.payload(slice(0, 2), Bytes::from_static(b"ab"));
        inlets.payload(slice(2, 1), Bytes::from_static(b"c"));
        inlets.event(TransferEvent::Stopped { transfer: T, digest: Digest([0; 32]) });
        drop(inlets);
        let told: Vec<String> = told.iter().collect();
        assert_eq!(told, ["start 0..3 of 3", "write ab", "write c", "stop"]);
        let stored = |upto| Report::Stored { transfer: T, upto };
        assert_eq!(reports.iter().collect::<Vec<_>>(), [stored(2), stored(3)]);
    }

    #[test]
    fn a_sink_that_fails_is_told_nothing_more() {
        let (mut inlets, told, reports) = inlets();
        inlets.payload(slice(0, 1), Bytes::from_static(b"!"));
        inlets.payload(slice(1, 1), Bytes::from_static(b"x"));
        inlets.abort_all();
        drop(inlets);
        assert_eq!(told.iter().collect::<Vec<_>>(), ["start 0..3 of 3", "write !"]);
        assert!(reports.iter().any(|report| report == Report::Failed { transfer: T }));
    }

    #[test]
    fn a_connection_that_breaks_aborts_its_sinks() {
        let (mut inlets, told, _reports) = inlets();
        inlets.abort_all();
        drop(inlets);
        assert_eq!(told.iter().collect::<Vec<_>>(), ["start 0..3 of 3", "abort None"]);
    }
}
