//! Transactions: atomicity, conflicts, outcomes, and invalidations.

use std::thread::{scope, spawn};

use blobferry_protocol::{BlobId, Conflict, Outcome, RequestError, Tid, TxnId, TxnMeta};
use blobferry_session::client::{BlobSource, CallError, VoteError};

use super::world::{Pair, World};
use crate::support::bytes;

for_every_pair!(
    transaction_becomes_visible_at_one_tid,
    conflict_names_both_revisions_and_can_be_resolved,
    second_vote_on_an_object_waits_and_conflicts,
    votes_on_different_objects_do_not_block,
    ten_threads_increment_one_object_without_loss,
    invalidations_are_ordered_and_precede_visible_answers,
    committer_is_notified_before_its_answer,
    empty_commit_advances_last_tid,
    outcome_of_every_transaction_is_known,
    dropped_transaction_is_aborted,
    refused_store_dooms_its_transaction,
    vanished_client_leaves_no_locks_and_no_files,
    deletion_hides_the_object_but_keeps_its_history,
    history_lists_user_and_description_newest_first,
    pack_deletes_superseded_revisions,
);

fn transaction_becomes_visible_at_one_tid(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("cache"), world.client("cache"));
    let oids = writer.new_oids(20).unwrap();
    let mut transaction = writer.begin();
    scope(|scope| {
        for (n, oid) in oids.iter().enumerate() {
            let (transaction, source) = (&transaction, BlobSource::bytes(bytes("blob", n * 10_000)));
            scope.spawn(move || match n % 2 {
                0 => transaction.store(*oid, Tid::ZERO, vec![n as u8]).unwrap(),
                _ => drop(transaction.store_blob(*oid, Tid::ZERO, vec![n as u8], source).unwrap()),
            });
        }
    });
    let is_not_there = || {
        for oid in &oids {
            assert!(matches!(reader.load(*oid), Err(CallError::Refused(RequestError::NoSuchObject { .. }))));
        }
    };
    is_not_there();
    transaction.vote().unwrap();
    is_not_there();
    let tid = transaction.finish().unwrap();
    for (n, oid) in oids.iter().enumerate() {
        let revision = reader.load(*oid).unwrap();
        assert_eq!((revision.tid, revision.next, revision.data), (tid, None, vec![n as u8]));
        assert_eq!(revision.blob.map(|blob| blob.size), (n % 2 == 1).then_some(n as u64 * 10_000));
        if n % 2 == 1 {
            let cached = reader.load_blob(BlobId { oid: *oid, tid }).unwrap();
            assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", n * 10_000));
        }
    }
}

fn conflict_names_both_revisions_and_can_be_resolved(pair: &Pair) {
    let world = World::new(pair);
    let (first, second) = (world.client("cache"), world.client("cache"));
    let oids = first.new_oids(2).unwrap();
    let base = first.put(oids[0], Tid::ZERO, "a");
    let mut transaction = second.begin();
    transaction.store(oids[0], base, b"mine".to_vec()).unwrap();
    transaction.store_blob(oids[1], Tid::ZERO, Vec::new(), BlobSource::bytes("uploaded once")).unwrap();
    let committed = first.put(oids[0], base, "theirs");
    for _ in 0..2 {
        let Err(VoteError::Conflict(conflicts)) = transaction.vote() else { panic!("no conflict") };
        assert_eq!(conflicts, [Conflict { oid: oids[0], committed, base }]);
    }
    let Err(VoteError::Conflict(conflicts)) = transaction.commit() else { panic!("no conflict") };
    assert_eq!(conflicts, [Conflict { oid: oids[0], committed, base }]);
    transaction.store(oids[0], committed, b"both".to_vec()).unwrap();
    transaction.vote().unwrap();
    let tid = transaction.finish().unwrap();
    assert_eq!(first.load(oids[0]).unwrap().data, b"both");
    assert_eq!(first.load_before(oids[0], tid).unwrap().unwrap().data, b"theirs");
    assert_eq!(first.load_before(oids[1], tid).unwrap(), None, "the object did not exist yet");
    let before = first.load_serial(oids[0], base).unwrap();
    assert_eq!((&before.data[..], before.next), (&b"a"[..], Some(committed)));
    assert_eq!(first.load(oids[1]).unwrap().blob.unwrap().size, 13);
}

fn second_vote_on_an_object_waits_and_conflicts(pair: &Pair) {
    let world = World::new(pair);
    let (first, second) = (world.client("cache"), world.client("cache"));
    let oid = first.new_oid();
    let mut winner = first.begin();
    winner.store(oid, Tid::ZERO, b"first".to_vec()).unwrap();
    winner.vote().unwrap();
    let mut loser = second.begin();
    loser.store(oid, Tid::ZERO, b"second".to_vec()).unwrap();
    let voting = spawn(move || {
        let voted = loser.vote();
        (loser, voted)
    });
    // The second vote waits for the lock and blocks no other request.
    assert_eq!(second.counter("commits"), 0);
    let committed = winner.finish().unwrap();
    let (loser, voted) = voting.join().unwrap();
    let Err(VoteError::Conflict(conflicts)) = voted else { panic!("{voted:?}") };
    assert_eq!(conflicts, [Conflict { oid, committed, base: Tid::ZERO }]);
    loser.abort().unwrap();
    assert_eq!(second.load(oid).unwrap().data, b"first");
}

fn votes_on_different_objects_do_not_block(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oids = client.new_oids(2).unwrap();
    let mut voted = client.begin();
    voted.store(oids[0], Tid::ZERO, b"slow".to_vec()).unwrap();
    voted.vote().unwrap();
    let between = client.put(oids[1], Tid::ZERO, "quick");
    assert!(voted.finish().unwrap() > between);
}

fn ten_threads_increment_one_object_without_loss(pair: &Pair) {
    const EACH: u64 = 5;
    let world = World::new(pair);
    let clients = [world.client("cache"), world.client("cache")];
    let oid = clients[0].new_oid();
    clients[0].put(oid, Tid::ZERO, 0_u64.to_le_bytes());
    let count = |record: &[u8]| u64::from_le_bytes(record.try_into().unwrap());
    scope(|scope| {
        for n in 0..10 {
            let client = &clients[n % 2];
            scope.spawn(move || {
                for _ in 0..EACH {
                    let mut transaction = client.begin();
                    let mut revision = client.load(oid).unwrap();
                    loop {
                        let next = (count(&revision.data) + 1).to_le_bytes().to_vec();
                        transaction.store(oid, revision.tid, next).unwrap();
                        match transaction.commit() {
                            Ok(_) => break,
                            Err(VoteError::Conflict(conflicts)) => {
                                revision = client.load_serial(oid, conflicts[0].committed).unwrap();
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(count(&clients[0].load(oid).unwrap().data), 10 * EACH);
    assert_eq!(clients[1].counter("commits"), 10 * EACH + 1);
}

fn invalidations_are_ordered_and_precede_visible_answers(pair: &Pair) {
    const COMMITS: usize = 50;
    let world = World::new(pair);
    let (writer, reader) = (world.client("cache"), world.client("cache"));
    let oid = writer.new_oid();
    let first = writer.put(oid, Tid::ZERO, "");
    let invalidations = reader.invalidations();
    let writing = spawn(move || {
        let mut tids = vec![first];
        for n in 0..COMMITS {
            tids.push(writer.put(oid, tids[n], n.to_string()));
        }
        tids
    });
    // The reader may or may not have been notified of the first commit already.
    let mut seen = first;
    loop {
        let revision = reader.load(oid).unwrap();
        assert!(revision.tid >= seen, "a reader never sees an older revision");
        assert!(reader.last_tid() >= revision.tid, "the notification precedes the visible revision");
        seen = revision.tid;
        if revision.data == (COMMITS - 1).to_string().as_bytes() {
            break;
        }
    }
    let tids = writing.join().unwrap();
    let mut received = Vec::new();
    for invalidation in invalidations {
        assert_eq!(invalidation.oids.as_deref(), Some(&[oid][..]));
        received.push(invalidation.tid);
        if received.last() == tids.last() {
            break;
        }
    }
    assert!(received.ends_with(&tids[1..]) && received.len() <= tids.len(), "each commit once, in order");
}

fn committer_is_notified_before_its_answer(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oids = client.new_oids(3).unwrap();
    let mut invalidations = client.invalidations();
    let mut transaction = client.begin();
    for oid in &oids {
        transaction.store(*oid, Tid::ZERO, Vec::new()).unwrap();
    }
    transaction.vote().unwrap();
    let tid = transaction.finish().unwrap();
    assert_eq!(client.last_tid(), tid);
    let received = invalidations.next().unwrap();
    assert_eq!((received.tid, received.oids.as_deref()), (tid, Some(&oids[..])));
}

fn empty_commit_advances_last_tid(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let tid = client.begin().commit().unwrap();
    assert_eq!(client.last_tid(), tid);
}

fn outcome_of_every_transaction_is_known(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oid = client.new_oid();
    let mut committed = client.begin();
    committed.store(oid, Tid::ZERO, Vec::new()).unwrap();
    let tid = committed.commit().unwrap();
    assert_eq!(client.outcome(committed.id()).unwrap(), Outcome::Committed { tid });
    let aborted = client.begin();
    let id = aborted.id();
    aborted.abort().unwrap();
    assert_eq!(client.outcome(id).unwrap(), Outcome::NotCommitted);
    assert_eq!(client.outcome(TxnId([7; 16])).unwrap(), Outcome::NotCommitted);
    // Another client gets the same outcome.
    let other = world.client("cache");
    assert_eq!(other.outcome(committed.id()).unwrap(), Outcome::Committed { tid });
}

fn dropped_transaction_is_aborted(pair: &Pair) {
    let mut world = World::new(pair);
    let client = world.client("cache");
    let oid = client.new_oid();
    let file = world.file("moved", bytes("moved", 100_000));
    let mut transaction = client.begin();
    transaction.store_blob(oid, Tid::ZERO, b"lost".to_vec(), BlobSource::moved(&file)).unwrap();
    transaction.vote().unwrap();
    let id = transaction.id();
    drop(transaction);
    // The next vote waits for the locks and gets them.
    client.put(oid, Tid::ZERO, "kept");
    assert_eq!(client.load(oid).unwrap().data, b"kept");
    assert_eq!(client.outcome(id).unwrap(), Outcome::NotCommitted);
    client.close();
    assert_eq!(world.cached("cache").len(), 0);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn refused_store_dooms_its_transaction(pair: &Pair) {
    let world = World::with(
        pair,
        blobferry_store::StoreConfig { max_objects: 1, ..Default::default() },
        Default::default(),
    );
    let client = world.client("cache");
    let oids = client.new_oids(2).unwrap();
    let mut transaction = client.begin();
    transaction.store(oids[0], Tid::ZERO, Vec::new()).unwrap();
    let refused = transaction.store(oids[1], Tid::ZERO, Vec::new());
    assert!(matches!(refused, Err(CallError::Refused(RequestError::Limit { limit: 1, .. }))), "{refused:?}");
    // The answer is the same whether the client already knows it or the server decides.
    let doomed = |error: &CallError| {
        assert!(matches!(error, CallError::Refused(RequestError::Doomed { .. })), "{error:?}");
    };
    doomed(&transaction.store(oids[0], Tid::ZERO, Vec::new()).unwrap_err());
    let Err(VoteError::Call(error)) = transaction.commit() else {
        panic!("the doomed transaction was committed")
    };
    doomed(&error);
    assert_eq!(client.outcome(transaction.id()).unwrap(), Outcome::NotCommitted);
    client.put(oids[0], Tid::ZERO, "the connection still works");
}

fn vanished_client_leaves_no_locks_and_no_files(pair: &Pair) {
    let mut world = World::new(pair);
    let other = world.client("cache");
    let oid = other.new_oid();
    let base = other.put(oid, Tid::ZERO, "before");
    for voted in [false, true] {
        let client = world.client("vanishing");
        let mut transaction = client.begin();
        transaction.store(oid, base, b"lost".to_vec()).unwrap();
        let source = BlobSource::bytes(vec![1; 200_000]);
        transaction.store_blob(client.new_oid(), Tid::ZERO, Vec::new(), source).unwrap();
        if voted {
            transaction.vote().unwrap();
        }
        std::mem::forget(transaction);
        drop(client);
    }
    // A vote waits for locks; this one gets them.
    other.put(oid, base, "after");
    assert_eq!(other.load(oid).unwrap().data, b"after");
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn deletion_hides_the_object_but_keeps_its_history(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oids = client.new_oids(2).unwrap();
    let (deleted, taken_back) = (oids[0], oids[1]);
    let stored = client.put(deleted, Tid::ZERO, "here");
    let mut transaction = client.begin();
    transaction.delete(deleted, stored).unwrap();
    transaction.store(taken_back, Tid::ZERO, b"never mind".to_vec()).unwrap();
    transaction.delete(taken_back, Tid::ZERO).unwrap();
    let tid = transaction.commit().unwrap();
    for oid in oids {
        let gone = client.load(oid);
        assert!(matches!(gone, Err(CallError::Refused(RequestError::NoSuchObject { .. }))), "{gone:?}");
    }
    assert_eq!(client.load_before(deleted, tid).unwrap().unwrap().data, b"here");
    let sizes: Vec<_> = client.history(deleted, 10).unwrap().iter().map(|entry| entry.size).collect();
    assert_eq!(sizes, [None, Some(4)]);
    assert!(client.history(taken_back, 10).is_err());
    // A deletion conflicts as a store does.
    let mut late = client.begin();
    late.delete(deleted, stored).unwrap();
    let Err(VoteError::Conflict(conflicts)) = late.commit() else { panic!("no conflict") };
    assert_eq!(
        conflicts,
        [Conflict { oid: deleted, committed: Tid::ZERO, base: stored }],
        "the object counts as new again"
    );
}

fn history_lists_user_and_description_newest_first(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oid = client.new_oid();
    let mut tids = vec![Tid::ZERO];
    for n in 0..5_u8 {
        let meta = TxnMeta { user: b"ada".to_vec(), description: vec![n; 3] };
        let mut transaction = client.begin_with(meta).unwrap();
        let source = BlobSource::bytes(vec![n; n.into()]);
        transaction.store_blob(oid, *tids.last().unwrap(), vec![0; 10 + usize::from(n)], source).unwrap();
        tids.push(transaction.commit().unwrap());
    }
    let history = client.history(oid, 3).unwrap();
    assert_eq!(history.len(), 3);
    for (entry, n) in history.iter().zip([4_u8, 3, 2]) {
        assert_eq!(entry.tid, tids[usize::from(n) + 1]);
        assert_eq!(entry.meta, TxnMeta { user: b"ada".to_vec(), description: vec![n; 3] });
        assert_eq!((entry.size, entry.blob.unwrap().size), (Some(10 + u64::from(n)), n.into()));
    }
}

fn pack_deletes_superseded_revisions(pair: &Pair) {
    let world = World::new(pair);
    let (client, reader) = (world.client("cache"), world.client("reader"));
    let blob = client.store(BlobSource::bytes(bytes("old", 100_000)));
    let second = client.put(blob.oid, blob.tid, "second");
    let third = client.put(blob.oid, second, "third");
    let packed = client.pack(third).unwrap();
    assert_eq!((packed.revisions, packed.blobs, packed.bytes), (1, 1, 100_000));
    let gone = reader.load_blob(blob);
    assert!(matches!(gone, Err(CallError::Refused(RequestError::NoSuchBlob { .. }))), "{gone:?}");
    assert!(client.load_serial(blob.oid, blob.tid).is_err());
    assert_eq!(client.load_before(blob.oid, third).unwrap().unwrap().data, b"second");
    assert_eq!(client.load(blob.oid).unwrap().data, b"third");
}
