//! How much the machines cost by themselves: frames a second, chunks a second, and allocations for each.
//!
//! No byte of payload is moved here, and no socket: a transport adds that to it.

use std::hint::black_box;

use allocation_counter::measure;
use blobferry_protocol::{
    BlobId, Config, Digest, Expect, Oid, Reply, Request, Revision, Tid, Time, TransferId, client, server,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const NOW: Time = Time::ZERO;

/// A blob that has no end for a benchmark.
const ENDLESS: u64 = 1 << 60;

/// Rounds after which nothing grows any more.
const WARM: usize = 1000;

/// Both machines, and the bytes between them.
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

    /// All that the client has to say.
    fn carry_up(&mut self) {
        self.up.clear();
        while self.client.poll_transmit(NOW, &mut self.up).is_some() {}
        let used = self.server.handle_control(NOW, &self.up);
        assert_eq!(used, Ok(self.up.len()));
    }

    /// What the server has to say, up to the head of one chunk: says whether there was one.
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

    /// A small request and its answer: two frames.
    fn round_trip(&mut self, revision: &Revision) {
        let asked = self.client.request(Request::Load { oid: Oid(1) });
        self.carry_up();
        let Some(server::Event::Request { id, .. }) = self.server.poll_event() else { return };
        assert_eq!(asked, Ok(id));
        assert_eq!(self.server.reply(id, Ok(Reply::Revision(revision.clone()))), Ok(()));
        self.carry_down();
        let Some(client::Event::Reply { result, .. }) = self.client.poll_event() else { return };
        assert!(black_box(result).is_ok());
    }

    /// Begins a download that has no end.
    fn download(&mut self) -> TransferId {
        let blob = BlobId { oid: Oid(1), tid: Tid(1) };
        let asked = self.client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX });
        self.carry_up();
        while self.server.poll_event().is_some() {}
        let transfer: Option<TransferId> = asked.ok().map(Into::into);
        let transfer = transfer.unwrap_or(TransferId(0));
        assert!(self.server.start_blob(transfer, ENDLESS, Digest([0; 32])).is_ok());
        transfer
    }

    /// A chunk goes to the client, is stored there, and gives the server its credit back.
    fn chunk(&mut self) {
        assert!(self.carry_down(), "there is credit");
        while self.client.poll_event().is_some() {}
        let Expect::Payload(slice) = self.client.expect() else { return };
        assert_eq!(self.client.payload_moved(NOW, slice.len), Ok(()));
        assert_eq!(self.client.stored(slice.transfer, slice.offset + slice.len), Ok(()));
        self.carry_up();
    }
}

/// How often a piece of work allocates when nothing grows any more.
fn tell_allocations(what: &str, mut work: impl FnMut()) {
    (0..WARM).for_each(|_| work());
    let allocations = measure(|| (0..WARM).for_each(|_| work())).count_total;
    println!("{what}: {} allocations each", allocations as f64 / WARM as f64);
}

fn frames(criterion: &mut Criterion) {
    let mut pair = Pair::connected();
    let revision = Revision { tid: Tid(1), data: vec![7; 100], blob: None, next: None };
    tell_allocations("a small request and its answer", || pair.round_trip(&revision));
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Elements(2));
    group.bench_function("request and answer", |bencher| bencher.iter(|| pair.round_trip(&revision)));
    group.finish();
}

fn chunks(criterion: &mut Criterion) {
    let mut pair = Pair::connected();
    pair.download();
    tell_allocations("a chunk and its credit", || pair.chunk());
    let mut group = criterion.benchmark_group("chunks");
    group.throughput(Throughput::Elements(1));
    group.bench_function("chunk and credit", |bencher| bencher.iter(|| pair.chunk()));
    group.finish();
}

criterion_group!(benches, frames, chunks);
criterion_main!(benches);
