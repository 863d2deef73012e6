//! Sinks of the transfers that arrive. A sink is called in order, on a thread that may block. A quick sink is called on
//! the thread that receives the bytes.

use std::collections::BTreeMap;

use blobferry_protocol::{Digest, RequestError, Slice, TransferEvent, TransferId};
use bytes::Bytes;

use blobferry_platform::pool::{BlockingPool, Strand};
use blobferry_platform::sync::{Arc, Mutex};

/// The receiver of one transfer. It is called on threads that may block, one call at a time, in order.
///
/// A sink that fails reports the error itself, and returns `false`; the rest of the transfer is dropped.
pub trait Sink: Send {
    /// Returns whether the sink takes a blob of `size` bytes without waiting for a disk. Then it is called inside
    /// [`ConnectionHandler::receive`](super::ConnectionHandler::receive), which is cheaper than a thread switch.
    fn is_quick(&self, _size: u64) -> bool {
        false
    }
    /// Begins the transfer: bytes `from..end` of a blob of `size` bytes will arrive.
    fn start(&mut self, from: u64, end: u64, size: u64) -> bool;
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> bool;
    /// Takes the end. The bytes are valid only if the blob has this digest.
    fn stop(self: Box<Self>, digest: Digest);
    /// Aborts the transfer, for this reason; with `None`, because the connection was lost.
    fn abort(self: Box<Self>, reason: Option<RequestError>);
}

/// The progress of a sink, which is reported from any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkEvent {
    /// The sink has taken all bytes below this offset.
    Stored {
        /// The transfer.
        transfer: TransferId,
        /// The offset.
        upto: u64,
    },
    /// The sink has failed.
    Failed {
        /// The transfer.
        transfer: TransferId,
    },
}

/// The sinks of one connection.
pub struct IncomingTransfers {
    workers: BlockingPool,
    report: Arc<dyn Fn(SinkEvent) + Send + Sync>,
    transfers: BTreeMap<TransferId, Transfer>,
}

struct Transfer {
    strand: Strand,
    /// Empty when the sink has failed or is done.
    sink: Arc<Slot>,
    waiting: Arc<Mutex<Waiting>>,
    is_quick: bool,
}

impl Transfer {
    fn run(&self, job: impl FnOnce() + Send + 'static) {
        match self.is_quick {
            true => self.strand.dispatch(job),
            false => self.strand.post(job),
        }
    }
}

/// Payload that waits for its sink, each run with the offset behind it. One job takes all of it. A peer may send its bytes
/// one by one, so the queue must not be much larger than they are.
#[derive(Default)]
struct Waiting(Vec<(Run, u64)>);

/// A run of payload bytes.
enum Run {
    /// A large part of one read buffer.
    Read(Bytes),
    /// Smaller parts, copied: each would keep its whole read buffer.
    Gathered(Vec<u8>),
}

/// Bytes from which a part keeps its read buffer, and up to which smaller parts are gathered.
const GATHER: usize = 32 << 10;

impl Waiting {
    fn push(&mut self, bytes: Bytes, upto: u64) {
        match self.0.last_mut() {
            _ if bytes.len() >= GATHER => self.0.push((Run::Read(bytes), upto)),
            Some((Run::Gathered(gathered), end)) if gathered.len() < GATHER => {
                gathered.extend_from_slice(&bytes);
                *end = upto;
            }
            _ => self.0.push((Run::Gathered(bytes.to_vec()), upto)),
        }
    }
}

impl AsRef<[u8]> for Run {
    fn as_ref(&self) -> &[u8] {
        match self {
            Run::Read(bytes) => bytes,
            Run::Gathered(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for IncomingTransfers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.transfers.keys()).finish()
    }
}

impl IncomingTransfers {
    /// Creates an empty set. `report` is called from the threads of the pool, and from the receiving thread.
    #[must_use]
    pub fn new(workers: &BlockingPool, report: Arc<dyn Fn(SinkEvent) + Send + Sync>) -> IncomingTransfers {
        IncomingTransfers { workers: workers.clone(), report, transfers: BTreeMap::new() }
    }

    /// Returns whether no transfer is expected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.transfers.is_empty()
    }

    /// Registers the sink of a transfer that may begin.
    pub fn expect(&mut self, transfer: TransferId, sink: Box<dyn Sink>) {
        let sink = Arc::new(Mutex::new(Some(sink)));
        let (strand, waiting) = (Strand::new(&self.workers), Arc::default());
        self.transfers.insert(transfer, Transfer { strand, sink, waiting, is_quick: false });
    }

    /// Passes on an event of a transfer.
    pub fn event(&mut self, event: TransferEvent) {
        match event {
            TransferEvent::Started { transfer, from, end, size, .. } => {
                let Some(entry) = self.transfers.get_mut(&transfer) else { return };
                entry.is_quick = entry.sink.lock().as_ref().is_some_and(|sink| sink.is_quick(size));
                let (sink, report) = (entry.sink.clone(), self.report.clone());
                entry.run(move || attempt(&sink, &report, transfer, |sink| sink.start(from, end, size)));
            }
            TransferEvent::Stopped { transfer, digest } => {
                let Some(entry) = self.transfers.remove(&transfer) else { return };
                let sink = entry.sink.clone();
                entry.run(move || {
                    if let Some(sink) = take(&sink) {
                        sink.stop(digest);
                    }
                });
            }
            TransferEvent::Aborted { transfer, reason } => self.abort(transfer, Some(reason)),
        }
    }

    /// Aborts a transfer, whether it has begun or not; with `None`, because the connection was lost.
    pub fn abort(&mut self, transfer: TransferId, reason: Option<RequestError>) {
        let Some(entry) = self.transfers.remove(&transfer) else { return };
        entry.strand.post(move || {
            if let Some(sink) = take(&entry.sink) {
                sink.abort(reason);
            }
        });
    }

    /// Aborts all transfers, because the connection was lost.
    pub fn abort_all(&mut self) {
        while let Some(transfer) = self.transfers.keys().next().copied() {
            self.abort(transfer, None);
        }
    }

    /// Removes a transfer whose sink has failed.
    pub fn remove(&mut self, transfer: TransferId) {
        self.transfers.remove(&transfer);
    }

    /// Passes on payload. Bytes without a sink are dropped.
    pub fn payload(&mut self, slice: Slice, bytes: Bytes) {
        let Slice { transfer, offset, len } = slice;
        let Some(entry) = self.transfers.get(&transfer) else { return };
        let (sink, report) = (entry.sink.clone(), self.report.clone());
        if entry.is_quick {
            return entry.strand.dispatch(move || {
                attempt(&sink, &report, transfer, |sink| sink.write(&bytes));
                report(SinkEvent::Stored { transfer, upto: offset + len });
            });
        }
        let mut waiting = entry.waiting.lock();
        let is_first = waiting.0.is_empty();
        waiting.push(bytes, offset + len);
        drop(waiting);
        if is_first {
            let waiting = entry.waiting.clone();
            entry.strand.post(move || {
                let Waiting(runs) = std::mem::take(&mut *waiting.lock());
                for (run, upto) in runs {
                    attempt(&sink, &report, transfer, |sink| sink.write(run.as_ref()));
                    drop(run);
                    report(SinkEvent::Stored { transfer, upto });
                }
            });
        }
    }
}

type Slot = Mutex<Option<Box<dyn Sink>>>;

fn take(slot: &Slot) -> Option<Box<dyn Sink>> {
    slot.lock().take()
}

/// Calls a sink. If it fails, drops it and reports the failure.
fn attempt(
    slot: &Slot,
    report: &Arc<dyn Fn(SinkEvent) + Send + Sync>,
    transfer: TransferId,
    act: impl FnOnce(&mut dyn Sink) -> bool,
) {
    // Only this strand uses the sink. If it panics, it is not called again.
    let Some(mut sink) = take(slot) else { return };
    if act(sink.as_mut()) {
        *slot.lock() = Some(sink);
    } else {
        report(SinkEvent::Failed { transfer });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Sender};

    use super::*;

    const T: TransferId = TransferId(1);

    fn slice(offset: u64, len: u64) -> Slice {
        Slice { transfer: T, offset, len }
    }

    /// Reports its calls; fails at the byte `!`. Is quick with blobs of four bytes.
    struct Recorder(Sender<String>);

    impl Sink for Recorder {
        fn is_quick(&self, size: u64) -> bool {
            size == 4
        }
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

    fn incoming() -> (IncomingTransfers, mpsc::Receiver<String>, mpsc::Receiver<SinkEvent>) {
        let (report, reports) = mpsc::channel();
        let (call, calls) = mpsc::channel();
        let mut incoming =
            IncomingTransfers::new(&BlockingPool::new(2), Arc::new(move |what| report.send(what).unwrap()));
        incoming.expect(T, Box::new(Recorder(call)));
        incoming.event(TransferEvent::Started { transfer: T, from: 0, end: 3, size: 3, digest: None });
        (incoming, calls, reports)
    }

    #[test]
    fn sink_is_called_in_order_and_its_progress_reported() {
        let (mut incoming, calls, reports) = incoming();
        let stored = |upto| SinkEvent::Stored { transfer: T, upto };
        incoming.payload(slice(0, 2), Bytes::from_static(b"ab"));
        assert_eq!(reports.recv().unwrap(), stored(2));
        incoming.payload(slice(2, 1), Bytes::from_static(b"c"));
        incoming.event(TransferEvent::Stopped { transfer: T, digest: Digest([0; 32]) });
        drop(incoming);
        let calls: Vec<String> = calls.iter().collect();
        assert_eq!(calls, ["start 0..3 of 3", "write ab", "write c", "stop"]);
        assert_eq!(reports.iter().collect::<Vec<_>>(), [stored(3)]);
    }

    #[test]
    fn quick_sink_is_called_inline() {
        let (call, calls) = mpsc::channel();
        let (report, reports) = mpsc::channel();
        // The only thread of the pool is busy to the end.
        let workers = BlockingPool::new(1);
        let (go, wait) = mpsc::channel::<()>();
        workers.run(move || wait.recv().unwrap());
        let mut incoming = IncomingTransfers::new(&workers, Arc::new(move |what| report.send(what).unwrap()));
        incoming.expect(T, Box::new(Recorder(call)));
        incoming.event(TransferEvent::Started { transfer: T, from: 0, end: 4, size: 4, digest: None });
        incoming.payload(slice(0, 1), Bytes::from_static(b"a"));
        incoming.payload(slice(1, 3), Bytes::from_static(b"bcd"));
        incoming.event(TransferEvent::Stopped { transfer: T, digest: Digest([0; 32]) });
        let calls: Vec<String> = calls.try_iter().collect();
        assert_eq!(calls, ["start 0..4 of 4", "write a", "write bcd", "stop"]);
        let reported: Vec<SinkEvent> = reports.try_iter().collect();
        assert_eq!(reported, [1, 4].map(|upto| SinkEvent::Stored { transfer: T, upto }));
        go.send(()).unwrap();
    }

    #[test]
    fn single_bytes_are_gathered() {
        let workers = BlockingPool::new(1);
        let (call, calls) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        workers.run(move || wait.recv().unwrap());
        let mut incoming = IncomingTransfers::new(&workers, Arc::new(|_| {}));
        incoming.expect(T, Box::new(Recorder(call)));
        let read = Bytes::from(vec![b'a'; 2 * GATHER]);
        for at in 0..3 * GATHER {
            incoming.payload(slice(at as u64, 1), read.slice(at % 7..at % 7 + 1));
        }
        incoming.payload(slice(3 * GATHER as u64, 2 * GATHER as u64), read.clone());
        incoming.payload(slice(5 * GATHER as u64, 1), read.slice(..1));
        let waiting = incoming.transfers[&T].waiting.clone();
        let runs: Vec<(usize, u64)> =
            waiting.lock().0.iter().map(|(run, upto)| (run.as_ref().len(), *upto)).collect();
        let most = GATHER as u64;
        let gathered = [(GATHER, most), (GATHER, 2 * most), (GATHER, 3 * most)];
        assert_eq!(runs[..3], gathered);
        assert_eq!(runs[3..], [(2 * GATHER, 5 * most), (1, 5 * most + 1)]);
        go.send(()).unwrap();
        drop(incoming);
        let written: usize = calls.iter().map(|call| call.trim_start_matches("write ").len()).sum();
        assert_eq!(written, 5 * GATHER + 1);
    }

    #[test]
    fn failed_sink_is_not_called_again() {
        let (mut incoming, calls, reports) = incoming();
        incoming.payload(slice(0, 1), Bytes::from_static(b"!"));
        assert_eq!(reports.recv().unwrap(), SinkEvent::Failed { transfer: T });
        incoming.payload(slice(1, 1), Bytes::from_static(b"x"));
        incoming.abort_all();
        drop(incoming);
        assert_eq!(calls.iter().collect::<Vec<_>>(), ["start 0..3 of 3", "write !"]);
        assert!(reports.iter().all(|report| matches!(report, SinkEvent::Stored { .. })));
    }

    #[test]
    fn lost_connection_aborts_its_sinks() {
        let (mut incoming, calls, _reports) = incoming();
        incoming.abort_all();
        drop(incoming);
        assert_eq!(calls.iter().collect::<Vec<_>>(), ["start 0..3 of 3", "abort None"]);
    }
}
