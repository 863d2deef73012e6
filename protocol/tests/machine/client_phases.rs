//! The phases of a transaction on the client: what the client does not send. And the limits that
//! both sides keep.

use blobferry_protocol::{
    Limits, Message, Oid, PeerError, Phase, Reply, Request, RequestError, RequestId, Tid, UsageError, client,
};

use crate::support::{self, begin, events, receive, request, said, store, txn};
use crate::transactions::requests;

/// Returns a client whose transaction 1 is in this phase, and whose messages and events so far were
/// taken.
fn client_in(phase: Option<Phase>) -> client::Connection {
    let mut client = support::client();
    let txn = txn(1);
    let reply = |client: &mut client::Connection, id, result| receive(client, &Message::Reply { id, result });
    if phase.is_some() {
        let id = client.request(begin(1)).unwrap();
        reply(&mut client, id, Ok(Reply::Done));
    }
    match phase {
        None | Some(Phase::Open) => {}
        Some(Phase::Doomed) => {
            let id = client.request(store(1)).unwrap();
            reply(&mut client, id, Err(RequestError::Cancelled));
        }
        Some(phase) => {
            let id = client.request(Request::Vote { txn }).unwrap();
            if phase != Phase::Voting {
                reply(&mut client, id, Ok(Reply::Voted));
            }
            if phase == Phase::Finishing {
                client.request(Request::Finish { txn }).unwrap();
            }
        }
    }
    said(&mut client);
    events(&mut client);
    assert_eq!(client.phase(txn), phase);
    client
}

#[test]
fn the_client_sends_only_what_its_phase_allows() {
    let phases = [
        None,
        Some(Phase::Open),
        Some(Phase::Doomed),
        Some(Phase::Voting),
        Some(Phase::Voted),
        Some(Phase::Finishing),
    ];
    for phase in phases {
        for request in requests() {
            let mut client = client_in(phase);
            let before = client.requests_in_flight();
            let asked = match &request {
                Request::StoreBlob { .. } => {
                    let asked = client.upload(txn(1), Oid(1), Tid::ZERO, Vec::new(), 10, None);
                    asked.map(RequestId::from)
                }
                request => client.request(request.clone()),
            };
            let allowed = match (&request, phase) {
                (Request::Begin { .. }, phase) => phase.is_none(),
                // The transaction may be open at the server, from a lost connection.
                (Request::Abort { .. } | Request::Attach { .. }, None) => true,
                (Request::Attach { .. }, Some(_)) => false,
                (_, None) => false,
                (Request::Abort { .. }, Some(phase)) => phase != Phase::Finishing,
                (Request::Finish { .. }, Some(phase)) => phase == Phase::Voted,
                (_, Some(phase)) => phase == Phase::Open,
            };
            assert_eq!(asked.is_ok(), allowed, "{request:?} in {phase:?}: {asked:?}");
            if !allowed {
                assert_eq!((said(&mut client), client.requests_in_flight()), (vec![], before));
                assert_eq!(client.phase(txn(1)), phase);
            }
        }
    }
}

#[test]
fn an_error_ends_a_vote_on_the_clients_side_too() {
    for error in [RequestError::Doomed { txn: txn(1) }, RequestError::Stopping] {
        let mut client = client_in(Some(Phase::Voting));
        receive(&mut client, &Message::Reply { id: RequestId(2), result: Err(error) });
        assert_eq!(client.phase(txn(1)), None);
        assert!(client.request(begin(1)).is_ok());
    }
}

#[test]
fn a_late_vote_does_not_reach_a_new_transaction() {
    let mut client = client_in(Some(Phase::Voting));
    client.request(Request::Abort { txn: txn(1) }).unwrap();
    client.request(begin(1)).unwrap();
    receive(&mut client, &Message::Reply { id: RequestId(2), result: Ok(Reply::Voted) });
    assert_eq!(client.phase(txn(1)), Some(Phase::Open));
}

#[test]
fn both_sides_limit_transactions_and_requests() {
    let limits = Limits { transactions: 2, requests: 3, ..Limits::default() };
    let mut client = support::client_of(Default::default(), limits);
    client.request(begin(1)).unwrap();
    client.request(begin(2)).unwrap();
    let error = client.request(begin(3)).unwrap_err();
    assert_eq!(error, UsageError::Limit { what: "transactions", limit: 2 });
    client.request(Request::Status).unwrap();
    let error = client.request(Request::Status).unwrap_err();
    assert_eq!(error, UsageError::Limit { what: "requests", limit: 3 });

    let mut server = support::server_for(support::with(limits), Limits::default());
    receive(&mut server, &request(1, begin(1)));
    receive(&mut server, &request(2, begin(2)));
    receive(&mut server, &request(3, begin(3)));
    let refused =
        |message: &Message| matches!(message, Message::Reply { result: Err(RequestError::Limit { .. }), .. });
    assert!(said(&mut server).iter().all(refused));
    receive(&mut server, &request(4, Request::Status));
    let error = support::refuses(&mut server, &request(5, Request::Status));
    assert_eq!(error, PeerError::TooManyRequests { limit: 3 });
}

#[test]
fn request_ids_only_go_up() {
    for id in [0, 3, 4] {
        let mut server = support::server();
        receive(&mut server, &request(4, Request::Status));
        let error = support::refuses(&mut server, &request(id, Request::Status));
        assert_eq!(error, PeerError::RequestOrder { id: RequestId(id), last: RequestId(4) });
    }
}
