//! Transactions: conflicts, outcomes, and what others hear of them.

use blobferry_protocol::{Conflict, Oid, Outcome, Tid, TxnId, TxnMeta};
use blobferry_transport_tokio::{BlobSource, Client, VoteError};

use super::{World, new_oid};

/// Commits a record.
async fn put(client: &Client, oid: Oid, base: Tid, record: &str) -> Tid {
    let mut transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store(oid, base, record.into()).await.unwrap();
    transaction.commit().await.unwrap()
}

#[tokio::test]
async fn a_conflict_tells_both_revisions_and_can_be_resolved_in_the_same_transaction() {
    let world = World::new().await;
    let (first, second) = (world.client("cache").await, world.client("cache").await);
    let oids = first.new_oids(2).await.unwrap();
    let base = put(&first, oids[0], Tid::ZERO, "a").await;
    let mut transaction = second.begin(TxnMeta::default()).unwrap();
    transaction.store(oids[0], base, b"mine".to_vec()).await.unwrap();
    let source = BlobSource::bytes("uploaded once");
    transaction.store_blob(oids[1], Tid::ZERO, Vec::new(), source).await.unwrap();
    let committed = put(&first, oids[0], base, "theirs").await;
    for _ in 0..2 {
        let Err(VoteError::Conflict(conflicts)) = transaction.vote().await else { panic!("no conflict") };
        assert_eq!(conflicts, [Conflict { oid: oids[0], committed, base }]);
    }
    transaction.store(oids[0], committed, b"both".to_vec()).await.unwrap();
    transaction.vote().await.unwrap();
    let tid = transaction.finish().await.unwrap();
    assert_eq!(first.load(oids[0]).await.unwrap().data, b"both");
    assert_eq!(first.load_before(oids[0], tid).await.unwrap().unwrap().data, b"theirs");
    assert_eq!(first.load_before(oids[1], tid).await.unwrap(), None, "it was not there yet");
    assert_eq!(first.load_serial(oids[0], base).await.unwrap().data, b"a");
    assert_eq!(first.load(oids[1]).await.unwrap().blob.unwrap().size, 13);
}

#[tokio::test]
async fn commits_are_told_in_order_and_never_behind_an_answer_that_shows_them() {
    const COMMITS: usize = 50;
    let world = World::new().await;
    let (writer, reader) = (world.client("cache").await, world.client("cache").await);
    let oid = new_oid(&writer).await;
    let first = put(&writer, oid, Tid::ZERO, "").await;
    let mut told = reader.invalidations();
    let writing = tokio::spawn(async move {
        let mut tids = vec![first];
        for n in 0..COMMITS {
            tids.push(put(&writer, oid, tids[n], &n.to_string()).await);
        }
        tids
    });
    // It may or may not have been told of the first one already.
    let mut seen = first;
    while reader.load(oid).await.unwrap().data != (COMMITS - 1).to_string().as_bytes() {
        let revision = reader.load(oid).await.unwrap();
        assert!(revision.tid >= seen, "it never goes back");
        assert!(reader.last_tid() >= revision.tid, "it was told of what it sees");
        seen = revision.tid;
    }
    let tids = writing.await.unwrap();
    let mut heard = Vec::new();
    while heard.last() != tids.last() {
        let invalidation = told.next().await.unwrap();
        assert_eq!(*invalidation.oids, [oid]);
        heard.push(invalidation.tid);
    }
    assert!(heard.ends_with(&tids[1..]) && heard.len() <= tids.len(), "each once, in order");
}

#[tokio::test]
async fn the_outcome_of_every_transaction_is_known() {
    let world = World::new().await;
    let client = world.client("cache").await;
    let oid = new_oid(&client).await;
    let mut committed = client.begin(TxnMeta::default()).unwrap();
    committed.store(oid, Tid::ZERO, Vec::new()).await.unwrap();
    let tid = committed.commit().await.unwrap();
    assert_eq!(client.outcome(committed.id()).await.unwrap(), Outcome::Committed { tid });
    let aborted = client.begin(TxnMeta::default()).unwrap();
    let id = aborted.id();
    aborted.abort().await.unwrap();
    assert_eq!(client.outcome(id).await.unwrap(), Outcome::NotCommitted);
    assert_eq!(client.outcome(TxnId([7; 16])).await.unwrap(), Outcome::NotCommitted);
    // Others are told the same.
    let other = world.client("cache").await;
    assert_eq!(other.outcome(committed.id()).await.unwrap(), Outcome::Committed { tid });
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_no_locks_and_nothing_else() {
    let world = World::new().await;
    let other = world.client("cache").await;
    let oid = new_oid(&other).await;
    let base = put(&other, oid, Tid::ZERO, "before").await;
    for voted in [false, true] {
        let client = world.client("vanishing").await;
        let mut transaction = client.begin(TxnMeta::default()).unwrap();
        transaction.store(oid, base, b"lost".to_vec()).await.unwrap();
        let source = BlobSource::bytes(vec![1; 200_000]);
        transaction.store_blob(new_oid(&client).await, Tid::ZERO, Vec::new(), source).await.unwrap();
        if voted {
            transaction.vote().await.unwrap();
        }
        std::mem::forget(transaction);
        drop(client);
    }
    // A vote waits for the locks of another, and this one gets them.
    put(&other, oid, base, "after").await;
    assert_eq!(other.load(oid).await.unwrap().data, b"after");
    world.server.stop().await;
    assert_eq!(std::fs::read_dir(world.dir.path().join("server/blobs/tmp")).unwrap().count(), 0);
}
