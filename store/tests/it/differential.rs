//! SQLite's store does what the store in memory does, for random transactions.

use std::collections::BTreeMap;

use blobferry_protocol::{Oid, Tid};
use blobferry_store::{Store, StoreConfig};
use proptest::prelude::*;

use crate::support::{StoreExt, memory, sqlite};

/// A change of one object, made from its current revision.
#[derive(Clone, Debug)]
enum Change {
    Store(Vec<u8>),
    Blob(usize),
    Delete,
}

#[derive(Clone, Debug)]
enum Step {
    Commit(BTreeMap<u64, Change>),
    /// Packs before the transaction of this index, counted from the first.
    Pack(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..5).prop_map(Change::Store),
        (0..40usize).prop_map(Change::Blob),
        Just(Change::Delete),
    ];
    prop_oneof![
        5 => prop::collection::btree_map(1..4u64, change, 0..3).prop_map(Step::Commit),
        1 => any::<prop::sample::Index>().prop_map(Step::Pack),
    ]
}

/// Takes the steps, then describes what readers see. The description has numbers for tids.
fn run(store: &dyn Store, steps: &[Step]) -> Vec<String> {
    let mut tids = vec![Tid::ZERO];
    let mut seen = Vec::new();
    for step in steps {
        match step {
            Step::Commit(changes) => {
                let txn = store.begin_new();
                for (oid, change) in changes {
                    let base = store.load(Oid(*oid)).map_or(Tid::ZERO, |revision| revision.tid);
                    match change {
                        Change::Store(data) => store.store(txn, Oid(*oid), base, data.clone()),
                        Change::Delete => store.delete(txn, Oid(*oid), base),
                        Change::Blob(size) => {
                            store.store_blob(txn, Oid(*oid), base, vec![], store.staged(&vec![1; *size]))
                        }
                    }
                    .unwrap();
                }
                tids.push(store.commit(txn));
            }
            Step::Pack(index) => seen.push(format!("{:?}", store.pack(*index.get(&tids)).unwrap())),
        }
    }
    let number = |tid: Tid| tids.iter().position(|other| *other == tid).unwrap();
    for oid in 1..4 {
        let history = store.history(Oid(oid), 100).unwrap_or_default();
        seen.extend(history.iter().map(|entry| {
            let blob = entry.blob.map(|_| store.blob(oid, entry.tid).unwrap());
            format!("{oid}@{}: {:?} {blob:?}", number(entry.tid), entry.size)
        }));
        for (n, before) in tids.iter().chain([&Tid::MAX]).enumerate() {
            let found = store.load_before(Oid(oid), *before);
            let found = found.map(|found| found.map(|r| (number(r.tid), r.next.map(number), r.data))).ok();
            seen.push(format!("{oid} before {n}: {found:?}"));
        }
    }
    let all = store.revisions(None, 1000).unwrap();
    seen.extend(all.iter().map(|r| format!("{}@{}: {:?}", r.oid, number(r.tid), r.blob)));
    let counts = store.counts();
    seen.push(format!("{:?}", (counts.objects, counts.revisions, counts.blobs, counts.blob_bytes)));
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_does_what_memory_does(steps in prop::collection::vec(step(), 0..12)) {
        let config = StoreConfig { inline_max: 20, ..StoreConfig::default() };
        let (memory, sqlite) = (memory(config.clone()), sqlite(config));
        prop_assert_eq!(run(&*memory.store, &steps), run(&*sqlite.store, &steps));
    }
}
