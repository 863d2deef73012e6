//! Requests that a server refuses, the errors, and that the connection stays open.

use super::client::{Client, digest};
use super::decode::Answer;
use super::encode::{Body, Txn, error, message, request};
use crate::conformance::world::{Pair, World};
use crate::support::bytes;

for_every_server!(
    missing_objects_are_refused_by_id,
    each_transaction_phase_refuses_invalid_requests,
    used_transaction_id_is_refused,
    blob_with_wrong_digest_dooms_its_transaction,
    refused_upload_is_discarded_to_its_end,
    transaction_belongs_to_its_connection,
    client_supplied_paths_are_never_used,
    limit_error_names_limit_and_value,
);

const TXN: Txn = [1; 16];

fn missing_objects_are_refused_by_id(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    let tid = client.put(TXN, oid, 0, b"no blob");
    let missing = oid + 1;
    let refusals = [
        (request::load(missing), error::NO_SUCH_OBJECT, vec![missing]),
        (request::load_before(missing, tid), error::NO_SUCH_OBJECT, vec![missing]),
        (request::history(missing, 1), error::NO_SUCH_OBJECT, vec![missing]),
        (request::load_serial(oid, tid - 1), error::NO_SUCH_REVISION, vec![oid, tid - 1]),
        (request::send_blob(oid, tid, 0, u64::MAX), error::NO_SUCH_BLOB, vec![oid, tid]),
    ];
    for (request, number, ints) in refusals {
        let refused = client.refused(request);
        assert_eq!((refused.number, refused.ints), (number, ints));
    }
    let (oid, tid) = client.put_blob([2; 16], b"four");
    for (from, upto) in [(5, u64::MAX), (5, 6), (3, 2)] {
        let refused = client.download((oid, tid), from, upto).unwrap_err();
        assert_eq!((refused.number, refused.ints), (error::BAD_RANGE, vec![oid, tid, 4, from, upto]));
    }
}

/// Brings a new transaction into a phase; returns its id.
fn in_phase(client: &mut Client, phase: &str, name: u8, oid: u64) -> Txn {
    let txn = [name; 16];
    if phase == "none" {
        return txn;
    }
    client.begin_and_store(txn, oid, 0, b"record");
    match phase {
        "voted" => assert_eq!(client.call(request::vote(txn)), Ok(Answer::Voted)),
        "doomed" => {
            let uploaded = client.start_upload(txn, oid, 0, 1);
            client.send(Body::blob_abort(uploaded, error::CANCELLED));
            client.answer(uploaded).unwrap_err();
        }
        _ => {}
    }
    txn
}

fn each_transaction_phase_refuses_invalid_requests(pair: &Pair) {
    use error::{DOOMED, NO_SUCH_TRANSACTION, TRANSACTION_EXISTS, WRONG_PHASE};
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let store = |txn| request::store(txn, 1, 0, b"");
    let delete = |txn| request::delete(txn, 1, 0);
    let begin = |txn| request::begin(txn, b"", b"");
    let requests: [&dyn Fn(Txn) -> Body; 7] =
        [&begin, &store, &delete, &request::vote, &request::commit, &request::finish, &request::abort];
    let (yes, gone, wrong) = (None, Some(NO_SUCH_TRANSACTION), Some(WRONG_PHASE));
    let (doomed, exists) = (Some(DOOMED), Some(TRANSACTION_EXISTS));
    let phases = [
        ("none", [yes, gone, gone, gone, gone, gone, yes]),
        ("open", [exists, yes, yes, yes, yes, wrong, yes]),
        ("doomed", [exists, doomed, doomed, doomed, doomed, wrong, yes]),
        ("voted", [exists, wrong, wrong, wrong, wrong, yes, yes]),
    ];
    let mut name = 0;
    for (phase, answers) in phases {
        for (request, answer) in requests.into_iter().zip(answers) {
            name += 1;
            let txn = in_phase(&mut client, phase, name, u64::from(name) * 100);
            let refused = client.call(request(txn)).err();
            assert_eq!(refused.as_ref().map(|error| error.number), answer, "{phase}: {refused:?}");
            assert!(refused.is_none_or(|error| error.txn == Some(txn)));
            // In every phase the transaction can be aborted.
            client.done(request::abort(txn));
        }
    }
}

fn used_transaction_id_is_refused(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    let tid = client.put(TXN, oid, 0, b"record");
    // One id is committed; the outcome of the other was reported as not committed.
    let never_committed = [2; 16];
    assert_eq!(client.call(request::outcome(never_committed)), Ok(Answer::Outcome(None)));
    for txn in [TXN, never_committed] {
        client.submit(request::begin(txn, b"", b""));
        client.submit(request::store(txn, oid, tid, b"again"));
        client.refused(request::commit(txn));
    }
    assert_eq!(client.call(request::outcome(TXN)), Ok(Answer::Outcome(Some(tid))));
    assert_eq!(client.call(request::outcome(never_committed)), Ok(Answer::Outcome(None)));
    assert_eq!(client.counter("commits"), 1);
}

fn blob_with_wrong_digest_dooms_its_transaction(pair: &Pair) {
    let mut world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    for (name, size) in [(1, 1000), (2, 300_000)] {
        let (txn, whole) = ([name; 16], bytes("blob", size));
        client.done(request::begin(txn, b"", b""));
        let transfer = client.start_upload(txn, oid, 0, size as u64);
        client.send_payload(transfer, 0, &whole);
        client.send(Body::blob_stop(transfer, digest(b"something else")));
        assert_eq!(client.answer(transfer).unwrap_err().number, error::MISMATCH);
        assert_eq!(client.refused(request::store(txn, oid, 0, b"")).number, error::DOOMED);
        assert_eq!(client.refused(request::commit(txn)).number, error::DOOMED);
        assert_eq!(client.refused(request::commit(txn)).number, error::NO_SUCH_TRANSACTION);
        assert_eq!(client.call(request::outcome(txn)), Ok(Answer::Outcome(None)));
    }
    assert_eq!(client.refused(request::load(oid)).number, error::NO_SUCH_OBJECT);
    drop(client);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn refused_upload_is_discarded_to_its_end(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let (oid, whole) = (client.new_oid(), bytes("blob", 3_000_000));
    // Uploads of no transaction, larger together than all windows.
    for _ in 0..3 {
        let transfer = client.start_upload(TXN, oid, 0, whole.len() as u64);
        assert_eq!(client.answer(transfer).unwrap_err().number, error::NO_SUCH_TRANSACTION);
        // Bytes that the client sends before it reads the refusal.
        client.send_payload(transfer, 0, &whole[..2_000_000]);
        client.send(Body::blob_abort(transfer, error::CANCELLED));
    }
    // An upload that is complete before the client reads the refusal is no error, either.
    let refused = client.upload(TXN, oid, 0, b"small");
    assert_eq!(client.answer(refused).unwrap_err().number, error::NO_SUCH_TRANSACTION);
    let blob = client.put_blob(TXN, &whole);
    assert!(client.download(blob, 0, u64::MAX).unwrap().bytes == whole);
    assert_eq!(client.counter("blobs_received"), 1);
}

fn transaction_belongs_to_its_connection(pair: &Pair) {
    let world = World::new(pair);
    let (mut client, mut other) = (Client::new(world.address()), Client::new(world.address()));
    let oid = client.new_oid();
    client.begin_and_store(TXN, oid, 0, b"record");
    // Another client with the same id is refused, and its disconnection does no harm.
    let mut impostor = Client::new(world.address());
    assert_eq!(impostor.refused(request::begin(TXN, b"", b"")).number, error::TRANSACTION_EXISTS);
    assert_eq!(impostor.refused(request::store(TXN, oid, 0, b"stolen")).number, error::DOOMED);
    impostor.send(Body::new(message::GOODBYE));
    impostor.receive_to_the_end();
    let mut impostor = Client::new(world.address());
    assert_eq!(impostor.refused(request::begin(TXN, b"", b"")).number, error::TRANSACTION_EXISTS);
    assert_eq!(impostor.refused(request::commit(TXN)).number, error::DOOMED);
    let requests = [
        request::store(TXN, oid, 0, b"another"),
        request::vote(TXN),
        request::commit(TXN),
        request::finish(TXN),
    ];
    for request in requests {
        assert_eq!(other.refused(request).number, error::NO_SUCH_TRANSACTION);
    }
    // Aborting another client's transaction is no error and has no effect.
    other.done(request::abort(TXN));
    impostor.done(request::abort(TXN));
    let tid = client.commit(TXN);
    let Ok(Answer::Revision(revision)) = other.call(request::load(oid)) else { panic!("no revision") };
    assert_eq!((revision.tid, &revision.data[..]), (tid, &b"record"[..]));
}

fn client_supplied_paths_are_never_used(pair: &Pair) {
    let mut world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    let secret = world.file("secret", "secret");
    std::os::unix::fs::symlink(&secret, world.path("server/blobs/tmp/link")).unwrap();
    std::fs::hard_link(&secret, world.path("server/blobs/tmp/hard")).unwrap();
    let names = [
        secret.to_str().unwrap(),
        "../../../secret",
        "../.layout",
        "..",
        ".",
        "",
        "link",
        "hard",
        "missing",
        "a/b",
        "nul\0",
    ];
    for (n, name) in names.into_iter().enumerate() {
        let txn = [n as u8 + 1; 16];
        client.done(request::begin(txn, b"", b""));
        client.refused(request::store_shared(txn, oid, name, 6, digest(b"secret")));
        assert_eq!(client.refused(request::commit(txn)).number, error::DOOMED, "{name}");
    }
    assert_eq!(std::fs::read(secret).unwrap(), b"secret");
    for name in ["link", "hard"] {
        // The server may have removed them already.
        let _ = std::fs::remove_file(world.path("server/blobs/tmp").join(name));
    }
    drop(client);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn limit_error_names_limit_and_value(pair: &Pair) {
    let world = World::serving(pair, |config| config.connection.limits.transactions = 2);
    let mut client = Client::new(world.address());
    let begin = |n: u8| request::begin([n; 16], b"", b"");
    client.done(begin(1));
    client.done(begin(2));
    let refused = client.refused(begin(3));
    assert_eq!((refused.number, &refused.ints[..]), (error::LIMIT, &[2, 3][..]));
    client.done(request::abort([1; 16]));
    client.done(begin(4));
    client.done(request::abort([2; 16]));
    let refused = client.refused(request::begin([5; 16], &[b'a'; 40_000], &[b'b'; 40_000]));
    assert_eq!((refused.number, &refused.ints[..]), (error::LIMIT, &[65_536, 80_000][..]));
}
