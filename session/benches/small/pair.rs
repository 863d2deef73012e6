//! A client's machine and a session, with two buffers between them, driven by one thread.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use blobferry_protocol::{
    BlobId, Config, Digest, Oid, Reply, Request, RequestId, Slice, Tid, Time, TransferEvent, TxnId, TxnMeta,
    buffered, client,
};
use blobferry_session::io::ConnectionHandler;
use blobferry_session::server::{Handler, ServerCore};
use bytes::Bytes;

/// A caller's next question.
pub(crate) enum Ask {
    Commit { txn: TxnId, oid: Oid, base: Tid, blob: bool },
    Load(BlobId),
    Read(Oid),
}

/// A client and its server.
pub(crate) struct Pair {
    client: client::Connection,
    session: Handler,
    blob: Vec<u8>,
    digest: Digest,
    waiting: BTreeMap<RequestId, usize>,
    answered: Vec<(usize, Option<Tid>)>,
    up: Vec<u8>,
    start: Instant,
    /// The time that was spent in the session.
    pub(crate) took: Duration,
}

impl Pair {
    pub(crate) fn connect(service: &ServerCore, blob: Vec<u8>) -> Pair {
        let driver = thread::current();
        let session = Handler::new(service, Time::ZERO, move || driver.unpark());
        let client = client::Connection::new(Time::ZERO, Config::default(), b"");
        let digest = Digest(*blake3::hash(&blob).as_bytes());
        let (waiting, answered, up, start, took) =
            (BTreeMap::new(), Vec::new(), Vec::new(), Instant::now(), Duration::ZERO);
        let mut pair = Pair { client, session, blob, digest, waiting, answered, up, start, took };
        while !pair.client.is_connected() {
            pair.exchange();
        }
        pair
    }

    pub(crate) fn ask(&mut self, caller: usize, what: Ask) {
        let id = match what {
            Ask::Commit { txn, oid, base, blob } => {
                let meta = TxnMeta { user: b"bench".to_vec(), description: Vec::new() };
                self.client.request(Request::Begin { txn, meta }).expect("begin");
                if blob {
                    let size = self.blob.len() as u64;
                    let upload = self.client.upload(txn, oid, base, vec![1; 100], size, Some(self.digest));
                    upload.expect("an upload");
                } else {
                    let data = vec![1; 100];
                    self.client.request(Request::Store { txn, oid, base, data }).expect("a store");
                }
                self.client.request(Request::Commit { txn })
            }
            Ask::Load(blob) => self.client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX }),
            Ask::Read(oid) => self.client.request(Request::Load { oid }),
        };
        self.waiting.insert(id.expect("a request"), caller);
    }

    /// Waits for answers, and returns the callers that have one: at least one.
    pub(crate) fn next(&mut self) -> Vec<(usize, Option<Tid>)> {
        while self.answered.is_empty() {
            if !self.exchange() {
                thread::park();
            }
        }
        std::mem::take(&mut self.answered)
    }

    /// Moves what there is to move, both ways; whether anything was.
    fn exchange(&mut self) -> bool {
        let now = Time(self.start.elapsed());
        let blob = &self.blob;
        buffered::transmit(&mut self.client, now, &mut self.up, usize::MAX, |slice, into| {
            into.extend_from_slice(&blob[slice.offset as usize..][..slice.len as usize]);
            Ok(())
        });
        let (mut down, mut moved, start) = (Vec::new(), false, Instant::now());
        while self.session.wants_input() && !self.up.is_empty() {
            moved = true;
            let rest = self.up.split_off(self.up.len().min(64 << 10));
            let piece = std::mem::replace(&mut self.up, rest);
            self.session.receive(now, Bytes::from(piece)).expect("a session that lives");
        }
        self.session.transmit(now, &mut down, 1 << 20, false);
        self.took += start.elapsed();
        let mut heard = (&mut self.waiting, &mut self.answered);
        let event =
            |heard: &mut (&mut BTreeMap<_, _>, &mut Vec<_>), _: &mut client::Connection, event| match event {
                client::Event::Reply { id, result } => {
                    let caller = heard.0.remove(&id);
                    match result.expect("a good answer") {
                        Reply::Finished { tid } => heard.1.extend(caller.map(|caller| (caller, Some(tid)))),
                        _ => heard.1.extend(caller.map(|caller| (caller, None))),
                    }
                }
                client::Event::Transfer(TransferEvent::Stopped { transfer, .. }) => {
                    let caller = heard.0.remove(&transfer.into());
                    heard.1.extend(caller.map(|caller| (caller, None)));
                }
                _ => {}
            };
        let mut stored = Vec::new();
        let payload = |_: &mut (&mut BTreeMap<_, _>, &mut Vec<_>), slice: Slice, _| {
            stored.push((slice.transfer, slice.offset + slice.len));
        };
        buffered::receive(&mut self.client, now, &down, &mut heard, event, payload)
            .expect("a client that lives");
        for (transfer, upto) in stored {
            // It may be over already.
            _ = self.client.stored(transfer, upto);
        }
        moved || !down.is_empty()
    }
}

/// What the threads of this process have used and done.
pub(crate) struct Threads {
    each: BTreeMap<String, (Duration, u64)>,
}

/// The same between two moments.
pub(crate) struct Used {
    /// The time of all threads but the first.
    pub(crate) others: Duration,
    /// How often those have gone to sleep.
    pub(crate) slept_others: u64,
    /// How often the first has.
    pub(crate) slept: u64,
}

impl Threads {
    pub(crate) fn now() -> Threads {
        let mut each = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let ran = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            let slept = read("status").lines().find_map(|line| {
                line.strip_prefix("voluntary_ctxt_switches:").and_then(|n| n.trim().parse().ok())
            });
            let thread = entry.file_name().to_string_lossy().into_owned();
            each.insert(thread, (Duration::from_nanos(ran), slept.unwrap_or(0)));
        }
        Threads { each }
    }

    pub(crate) fn since(&self, before: &Threads) -> Used {
        let (mut used, first) =
            (Used { others: Duration::ZERO, slept_others: 0, slept: 0 }, std::process::id());
        for (thread, (ran, slept)) in &self.each {
            let (ran_before, slept_before) = before.each.get(thread).copied().unwrap_or_default();
            if *thread == first.to_string() {
                used.slept += slept - slept_before;
            } else {
                used.others += *ran - ran_before;
                used.slept_others += slept - slept_before;
            }
        }
        used
    }
}
