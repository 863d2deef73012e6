//! Sinks: where transfers that arrive go, in order, on threads that may block; those that are at hand at once take no
//! thread.

use std::collections::BTreeMap;

use blobferry_protocol::{Digest, RequestError, Slice, TransferEvent, TransferId};
use bytes::Bytes;

use blobferry_platform::pool::{BlockingPool, Strand};
use blobferry_platform::sync::{Arc, Mutex};

/// Where the bytes of one transfer go. Called on threads that may block, one call at a time, in order.
///
/// A sink that fails says so itself to whoever waits for it, and answers `false`: the rest is dropped.
pub trait Sink: Send {
    /// Does it take a blob of `size` bytes without waiting for a disk? Then it is called on the thread that receives
    /// them, inside of [`ConnectionHandler::receive`](super::ConnectionHandler::receive): a thread's time costs more than so few bytes.
    fn is_quick(&self, _size: u64) -> bool {
        false
    }
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
pub enum SinkEvent {
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
pub struct IncomingTransfers {
    workers: BlockingPool,
    report: Arc<dyn Fn(SinkEvent) + Send + Sync>,
    inlets: BTreeMap<TransferId, Inlet>,
}

struct Inlet {
    lane: Strand,
    /// `None` when the sink has failed or is done.
    sink: Arc<Slot>,
    waiting: Arc<Mutex<Waiting>>,
    is_quick: bool,
}

impl Inlet {
    fn run(&self, job: impl FnOnce() + Send + 'static) {
        match self.is_quick {
            true => self.lane.dispatch(job),
            false => self.lane.post(job),
        }
    }
}

/// Payload that waits for its sink, each run with the offset behind it. There is one job for all of it: a peer may send
/// its bytes one by one, and what waits must not be much larger than they are.
#[derive(Default)]
struct Waiting(Vec<(Run, u64)>);

/// A run of payload bytes.
enum Run {
    /// A good part of what was read at once.
    Read(Bytes),
    /// Smaller ones, copied: each would keep all that was read with it.
    Gathered(Vec<u8>),
}

/// Bytes that are worth keeping what was read with them, and the most that are gathered before.
const WORTH: usize = 32 << 10;

impl Waiting {
    fn push(&mut self, bytes: Bytes, upto: u64) {
        match self.0.last_mut() {
            _ if bytes.len() >= WORTH => self.0.push((Run::Read(bytes), upto)),
            Some((Run::Gathered(gathered), end)) if gathered.len() < WORTH => {
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
        f.debug_set().entries(self.inlets.keys()).finish()
    }
}

impl IncomingTransfers {
    /// No sinks yet. `report` is called from the workers.
    #[must_use]
    pub fn new(workers: &BlockingPool, report: Arc<dyn Fn(SinkEvent) + Send + Sync>) -> IncomingTransfers {
        IncomingTransfers { workers: workers.clone(), report, inlets: BTreeMap::new() }
    }

    /// Whether there is none: nothing arrives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inlets.is_empty()
    }

    /// Has a sink ready for a transfer that may begin.
    pub fn expect(&mut self, transfer: TransferId, sink: Box<dyn Sink>) {
        let sink = Arc::new(Mutex::new(Some(sink)));
        let (lane, waiting) = (Strand::new(&self.workers), Arc::default());
        self.inlets.insert(transfer, Inlet { lane, sink, waiting, is_quick: false });
    }

    /// Passes on what the connection says about a transfer.
    pub fn event(&mut self, event: TransferEvent) {
        match event {
            TransferEvent::Started { transfer, from, end, size, .. } => {
                let Some(inlet) = self.inlets.get_mut(&transfer) else { return };
                inlet.is_quick = inlet.sink.lock().as_ref().is_some_and(|sink| sink.is_quick(size));
                let (sink, report) = (inlet.sink.clone(), self.report.clone());
                inlet.run(move || attempt(&sink, &report, transfer, |sink| sink.start(from, end, size)));
            }
            TransferEvent::Stopped { transfer, digest } => {
                let Some(inlet) = self.inlets.remove(&transfer) else { return };
                let sink = inlet.sink.clone();
                inlet.run(move || {
                    if let Some(sink) = take(&sink) {
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
        inlet.lane.post(move || {
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

    /// Passes on payload. Bytes that nobody has a sink for are dropped.
    pub fn payload(&mut self, slice: Slice, bytes: Bytes) {
        let Slice { transfer, offset, len } = slice;
        let Some(inlet) = self.inlets.get(&transfer) else { return };
        let (sink, report) = (inlet.sink.clone(), self.report.clone());
        if inlet.is_quick {
            return inlet.lane.dispatch(move || {
                attempt(&sink, &report, transfer, |sink| sink.write(&bytes));
                report(SinkEvent::Stored { transfer, upto: offset + len });
            });
        }
        let mut waiting = inlet.waiting.lock();
        let is_first = waiting.0.is_empty();
        waiting.push(bytes, offset + len);
        drop(waiting);
        if is_first {
            let waiting = inlet.waiting.clone();
            inlet.lane.post(move || {
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

/// Lets a sink do something; where it fails, drops it and says so.
fn attempt(
    slot: &Slot,
    report: &Arc<dyn Fn(SinkEvent) + Send + Sync>,
    transfer: TransferId,
    act: impl FnOnce(&mut dyn Sink) -> bool,
) {
    // Only this lane uses the sink: taking it out keeps a panic in it from being met twice.
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

    /// Says what happens to it; fails at the byte `!`. Is quick with blobs of four bytes.
    struct Teller(Sender<String>);

    impl Sink for Teller {
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

    fn inlets() -> (IncomingTransfers, mpsc::Receiver<String>, mpsc::Receiver<SinkEvent>) {
        let (report, reports) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let mut inlets =
            IncomingTransfers::new(&BlockingPool::new(2), Arc::new(move |what| report.send(what).unwrap()));
        inlets.expect(T, Box::new(Teller(tell)));
        inlets.event(TransferEvent::Started { transfer: T, from: 0, end: 3, size: 3, digest: None });
        (inlets, told, reports)
    }

    #[test]
    fn a_sink_is_told_everything_in_order_and_what_it_took_is_reported() {
        let (mut inlets, told, reports) = inlets();
        let stored = |upto| SinkEvent::Stored { transfer: T, upto };
        inlets.payload(slice(0, 2), Bytes::from_static(b"ab"));
        assert_eq!(reports.recv().unwrap(), stored(2));
        inlets.payload(slice(2, 1), Bytes::from_static(b"c"));
        inlets.event(TransferEvent::Stopped { transfer: T, digest: Digest([0; 32]) });
        drop(inlets);
        let told: Vec<String> = told.iter().collect();
        assert_eq!(told, ["start 0..3 of 3", "write ab", "write c", "stop"]);
        assert_eq!(reports.iter().collect::<Vec<_>>(), [stored(3)]);
    }

    #[test]
    fn a_quick_sink_has_taken_everything_when_the_call_returns_and_no_thread_was_needed() {
        let (tell, told) = mpsc::channel();
        let (report, reports) = mpsc::channel();
        // Its only thread is busy to the end.
        let workers = BlockingPool::new(1);
        let (go, wait) = mpsc::channel::<()>();
        workers.run(move || wait.recv().unwrap());
        let mut inlets = IncomingTransfers::new(&workers, Arc::new(move |what| report.send(what).unwrap()));
        inlets.expect(T, Box::new(Teller(tell)));
        inlets.event(TransferEvent::Started { transfer: T, from: 0, end: 4, size: 4, digest: None });
        inlets.payload(slice(0, 1), Bytes::from_static(b"a"));
        inlets.payload(slice(1, 3), Bytes::from_static(b"bcd"));
        inlets.event(TransferEvent::Stopped { transfer: T, digest: Digest([0; 32]) });
        let told: Vec<String> = told.try_iter().collect();
        assert_eq!(told, ["start 0..4 of 4", "write a", "write bcd", "stop"]);
        let reported: Vec<SinkEvent> = reports.try_iter().collect();
        assert_eq!(reported, [1, 4].map(|upto| SinkEvent::Stored { transfer: T, upto }));
        go.send(()).unwrap();
    }

    #[test]
    fn bytes_that_come_one_by_one_wait_in_one_piece() {
        let workers = BlockingPool::new(1);
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        workers.run(move || wait.recv().unwrap());
        let mut inlets = IncomingTransfers::new(&workers, Arc::new(|_| {}));
        inlets.expect(T, Box::new(Teller(tell)));
        let read = Bytes::from(vec![b'a'; 2 * WORTH]);
        for at in 0..3 * WORTH {
            inlets.payload(slice(at as u64, 1), read.slice(at % 7..at % 7 + 1));
        }
        inlets.payload(slice(3 * WORTH as u64, 2 * WORTH as u64), read.clone());
        inlets.payload(slice(5 * WORTH as u64, 1), read.slice(..1));
        let waiting = inlets.inlets[&T].waiting.clone();
        let runs: Vec<(usize, u64)> =
            waiting.lock().0.iter().map(|(run, upto)| (run.as_ref().len(), *upto)).collect();
        let worth = WORTH as u64;
        let gathered = [(WORTH, worth), (WORTH, 2 * worth), (WORTH, 3 * worth)];
        assert_eq!(runs[..3], gathered);
        assert_eq!(runs[3..], [(2 * WORTH, 5 * worth), (1, 5 * worth + 1)]);
        go.send(()).unwrap();
        drop(inlets);
        let written: usize = told.iter().map(|told| told.trim_start_matches("write ").len()).sum();
        assert_eq!(written, 5 * WORTH + 1);
    }

    #[test]
    fn a_sink_that_fails_is_told_nothing_more() {
        let (mut inlets, told, reports) = inlets();
        inlets.payload(slice(0, 1), Bytes::from_static(b"!"));
        assert_eq!(reports.recv().unwrap(), SinkEvent::Failed { transfer: T });
        inlets.payload(slice(1, 1), Bytes::from_static(b"x"));
        inlets.abort_all();
        drop(inlets);
        assert_eq!(told.iter().collect::<Vec<_>>(), ["start 0..3 of 3", "write !"]);
        assert!(reports.iter().all(|report| matches!(report, SinkEvent::Stored { .. })));
    }

    #[test]
    fn a_connection_that_breaks_aborts_its_sinks() {
        let (mut inlets, told, _reports) = inlets();
        inlets.abort_all();
        drop(inlets);
        assert_eq!(told.iter().collect::<Vec<_>>(), ["start 0..3 of 3", "abort None"]);
    }
}
