//! The cost of the state machines: frames per second, chunks per second, and allocations for each.
//!
//! The benchmark moves no payload and uses no socket. A transport adds those costs.

use std::hint::black_box;

use allocation_counter::measure;
use blobferry_protocol::{
    BlobId, Config, Digest, Expect, Oid, Reply, Request, Revision, Tid, Time, TransferId, client, server,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const NOW: Time = Time::ZERO;

/// The size in bytes of a blob that a benchmark never finishes.
const ENDLESS: u64 = 1 << 60;

/// The rounds after which no buffer grows any more.
const WARM: usize = 1000;

/// Both connections, and the bytes between them.
struct Pair {
    client: client::Connection,
    server: server::Connection,
    up: Vec<u8>,
    down: Vec<u8>,
}

impl Pair {
    fn connected() -> Pair {
        let client = client::Connection::new(NOW, Config::default(), b"");
        let server = server::Connection::new(NOW, Config::default());
        let mut pair = Pair { client, server, up: Vec::new(), down: Vec::new() };
        pair.carry_up();
        assert!(matches!(pair.server.poll_event(), Some(server::Event::Hello { .. })));
        assert_eq!(pair.server.welcome(Tid::ZERO), Ok(()));
        assert!(!pair.carry_down());
        assert!(matches!(pair.client.poll_event(), Some(client::Event::Connected(_))));
        pair
    }

    /// Moves all messages of the client to the server.
    fn carry_up(&mut self) {
        self.up.clear();
        while self.client.poll_transmit(NOW, &mut self.up).is_some() {}
        let used = self.server.handle_control(NOW, &self.up);
        assert_eq!(used, Ok(self.up.len()));
    }

    /// Moves the messages of the server to the client, up to the head of one chunk; returns true if
    /// there was a chunk.
    fn carry_down(&mut self) -> bool {
        self.down.clear();
        let mut chunk = false;
        while !chunk && let Some(transmit) = self.server.poll_transmit(NOW, &mut self.down) {
            chunk = transmit.body.is_some();
        }
        let used = self.client.handle_control(NOW, &self.down);
        assert_eq!(used, Ok(self.down.len()));
        chunk
    }

    /// Exchanges a small request and its answer: two frames.
    fn round_trip(&mut self, revision: &Revision) {
        let sent = self.client.request(Request::Load { oid: Oid(1) });
        self.carry_up();
        let Some(server::Event::Request { id, .. }) = self.server.poll_event() else { return };
        assert_eq!(sent, Ok(id));
        assert_eq!(self.server.reply(id, Ok(Reply::Revision(revision.clone()))), Ok(()));
        self.carry_down();
        let Some(client::Event::Reply { result, .. }) = self.client.poll_event() else { return };
        assert!(black_box(result).is_ok());
    }

    /// Starts a download of [`ENDLESS`] bytes.
    fn download(&mut self) -> TransferId {
        let blob = BlobId { oid: Oid(1), tid: Tid(1) };
        let sent = self.client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX });
        self.carry_up();
        while self.server.poll_event().is_some() {}
        let transfer: Option<TransferId> = sent.ok().map(Into::into);
        let transfer = transfer.unwrap_or(TransferId(0));
        assert!(self.server.start_blob(transfer, ENDLESS, Digest([0; 32])).is_ok());
        transfer
    }

    /// Moves a chunk to the client, stores it there, and moves the credit back.
    fn chunk(&mut self) {
        assert!(self.carry_down(), "there is credit");
        while self.client.poll_event().is_some() {}
        let Expect::Payload(slice) = self.client.expect() else { return };
        assert_eq!(self.client.payload_moved(NOW, slice.len), Ok(()));
        assert_eq!(self.client.stored(slice.transfer, slice.offset + slice.len), Ok(()));
        self.carry_up();
    }
}

/// Prints how often `work` allocates after [`WARM`] rounds.
fn print_allocations(what: &str, mut work: impl FnMut()) {
    (0..WARM).for_each(|_| work());
    let allocations = measure(|| (0..WARM).for_each(|_| work())).count_total;
    println!("{what}: {} allocations each", allocations as f64 / WARM as f64);
}

fn frames(criterion: &mut Criterion) {
    let mut pair = Pair::connected();
    let revision = Revision { tid: Tid(1), data: vec![7; 100], blob: None, next: None };
    print_allocations("a small request and its answer", || pair.round_trip(&revision));
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Elements(2));
    group.bench_function("request and answer", |bencher| bencher.iter(|| pair.round_trip(&revision)));
    group.finish();
}

fn chunks(criterion: &mut Criterion) {
    let mut pair = Pair::connected();
    pair.download();
    print_allocations("a chunk and its credit", || pair.chunk());
    let mut group = criterion.benchmark_group("chunks");
    group.throughput(Throughput::Elements(1));
    group.bench_function("chunk and credit", |bencher| bencher.iter(|| pair.chunk()));
    group.finish();
}

criterion_group!(benches, frames, chunks);
criterion_main!(benches);
