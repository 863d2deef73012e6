//! The phases of a transaction on the server: which requests it passes on, and which it answers
//! itself.

use blobferry_protocol::server::Event;
use blobferry_protocol::{
    Conflict, Digest, Limits, Message, Oid, Phase, Reply, Request, RequestError, RequestId, Tid, Time,
    TransferEvent, TransferId, UsageError, server,
};

use crate::support::{self, begin, events, receive, request, said, store, store_blob, txn};

/// The state of a transaction when a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Open,
    Doomed,
    /// A vote waits for a store.
    Held,
    Voting,
    Voted,
    Finishing,
}

/// What the server does with the request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The caller gets the request.
    Passed,
    /// The request is neither passed on nor answered yet.
    Kept,
    Refused(RequestError),
}

const STATES: [State; 7] =
    [State::Unknown, State::Open, State::Doomed, State::Held, State::Voting, State::Voted, State::Finishing];

/// Returns one request of each kind that belongs to a transaction.
pub(crate) fn requests() -> Vec<Request> {
    let (txn, oid, base, data) = (txn(1), Oid(1), Tid::ZERO, Vec::new());
    let digest = Digest([0; 32]);
    vec![
        begin(1),
        store(1),
        store_blob(1),
        Request::StoreShared { txn, oid, base, data, name: "a".into(), size: 1, digest },
        Request::Delete { txn, oid, base },
        Request::Vote { txn },
        Request::Commit { txn },
        Request::Finish { txn },
        Request::Abort { txn },
        Request::Attach { txn },
    ]
}

/// Returns what the specification says.
fn expected(state: State, request: &Request) -> Verdict {
    let txn = txn(1);
    let wrong = |phase| Verdict::Refused(RequestError::WrongPhase { txn, phase });
    match (request, state) {
        (Request::Begin { .. } | Request::Attach { .. }, State::Unknown) => Verdict::Passed,
        (Request::Begin { .. } | Request::Attach { .. }, _) => {
            Verdict::Refused(RequestError::TransactionExists { txn })
        }
        (Request::Abort { .. }, State::Finishing) => wrong(Phase::Finishing),
        (Request::Abort { .. }, _) => Verdict::Passed,
        (_, State::Unknown) => Verdict::Refused(RequestError::NoSuchTransaction { txn }),
        (Request::Finish { .. }, State::Voted) => Verdict::Passed,
        (Request::Finish { .. }, State::Doomed | State::Open) => wrong(Phase::Open),
        (_, State::Voting | State::Held) => wrong(Phase::Voting),
        (_, State::Voted) => wrong(Phase::Voted),
        (_, State::Finishing) => wrong(Phase::Finishing),
        (_, State::Open) => Verdict::Passed,
        (_, State::Doomed) => Verdict::Refused(RequestError::Doomed { txn }),
    }
}

/// Returns a server whose transaction 1 is in this state. The next request has the number 10.
fn server_in(state: State) -> server::Connection {
    let mut server = support::server();
    let done = |server: &mut server::Connection, id, result| server.reply(RequestId(id), result).unwrap();
    if state != State::Unknown {
        receive(&mut server, &request(1, begin(1)));
        done(&mut server, 1, Ok(Reply::Done));
    }
    match state {
        State::Unknown | State::Open => {}
        State::Doomed => {
            receive(&mut server, &request(2, store(1)));
            done(&mut server, 2, Err(RequestError::Cancelled));
        }
        State::Held => {
            receive(&mut server, &request(2, store(1)));
            receive(&mut server, &request(3, Request::Vote { txn: txn(1) }));
        }
        State::Voting | State::Voted | State::Finishing => {
            receive(&mut server, &request(2, Request::Vote { txn: txn(1) }));
            if state != State::Voting {
                done(&mut server, 2, Ok(Reply::Voted));
            }
            if state == State::Finishing {
                receive(&mut server, &request(3, Request::Finish { txn: txn(1) }));
            }
        }
    }
    said(&mut server);
    events(&mut server);
    server
}

fn verdict(server: &mut server::Connection, asked: &Request) -> Verdict {
    receive(server, &request(10, asked.clone()));
    let passed = events(server).contains(&Event::Request { id: RequestId(10), request: asked.clone() });
    let answers: Vec<_> = said(server)
        .into_iter()
        .filter_map(|message| match message {
            Message::Reply { id: RequestId(10), result } => Some(result.unwrap_err()),
            _ => None,
        })
        .collect();
    match (passed, &answers[..]) {
        (true, []) => Verdict::Passed,
        (false, []) => Verdict::Kept,
        (false, [error]) => Verdict::Refused(error.clone()),
        _ => panic!("{asked:?} was passed on and answered {answers:?}"),
    }
}

#[test]
fn every_phase_passes_or_refuses_requests_as_specified() {
    for state in STATES {
        for request in requests() {
            let got = verdict(&mut server_in(state), &request);
            assert_eq!(got, expected(state, &request), "{request:?} in {state:?}");
        }
    }
}

#[test]
fn after_a_goodbye_only_ending_requests_pass() {
    for state in STATES {
        for request in requests() {
            let mut server = server_in(state);
            server.goodbye().unwrap();
            let ends = matches!(
                request,
                Request::Vote { .. }
                    | Request::Commit { .. }
                    | Request::Finish { .. }
                    | Request::Abort { .. }
            );
            let expected =
                if ends { expected(state, &request) } else { Verdict::Refused(RequestError::Stopping) };
            assert_eq!(verdict(&mut server, &request), expected, "{request:?} in {state:?}");
        }
    }
}

#[test]
fn a_vote_is_held_until_earlier_stores_are_answered() {
    for vote in [Request::Vote { txn: txn(1) }, Request::Commit { txn: txn(1) }] {
        let mut server = server_in(State::Open);
        receive(&mut server, &request(10, store(1)));
        receive(&mut server, &request(11, store(1)));
        assert_eq!(events(&mut server).len(), 2);
        assert_eq!(verdict_of(&mut server, 12, &vote), Verdict::Kept);
        server.reply(RequestId(11), Ok(Reply::Done)).unwrap();
        assert_eq!(events(&mut server), []);
        assert_eq!(
            server.reply(RequestId(12), Err(RequestError::Cancelled)),
            Err(UsageError::WrongReply(RequestId(12))),
            "a held vote cannot be answered"
        );
        server.reply(RequestId(10), Ok(Reply::Done)).unwrap();
        assert_eq!(events(&mut server), [Event::Request { id: RequestId(12), request: vote.clone() }]);
    }
}

fn verdict_of(server: &mut server::Connection, id: u64, asked: &Request) -> Verdict {
    receive(server, &request(id, asked.clone()));
    assert_eq!(events(server), []);
    assert_eq!(said(server), []);
    Verdict::Kept
}

#[test]
fn a_held_vote_of_a_doomed_transaction_is_refused() {
    let mut server = server_in(State::Held);
    server.reply(RequestId(2), Err(RequestError::NoSuchObject { oid: Oid(1) })).unwrap();
    assert_eq!(events(&mut server), [Event::Abandoned { txn: txn(1) }]);
    let doomed = Err(RequestError::Doomed { txn: txn(1) });
    assert_eq!(said(&mut server)[1], Message::Reply { id: RequestId(3), result: doomed });
    assert_eq!((server.transactions().count(), server.requests_in_flight()), (0, 0));
}

#[test]
fn a_store_behind_a_held_vote_dooms_it() {
    let mut server = server_in(State::Held);
    assert!(matches!(verdict(&mut server, &store(1)), Verdict::Refused(RequestError::WrongPhase { .. })));
    server.reply(RequestId(2), Ok(Reply::Done)).unwrap();
    assert_eq!(events(&mut server), [Event::Abandoned { txn: txn(1) }]);
}

#[test]
fn a_second_vote_after_conflicts_can_be_finished() {
    let mut server = server_in(State::Voting);
    let conflict = Conflict { oid: Oid(1), committed: Tid(2), base: Tid(1) };
    server.reply(RequestId(2), Ok(Reply::Conflicts(vec![conflict]))).unwrap();
    assert_eq!(verdict(&mut server, &store(1)), Verdict::Passed);
    server.reply(RequestId(10), Ok(Reply::Done)).unwrap();
    receive(&mut server, &request(11, Request::Vote { txn: txn(1) }));
    server.reply(RequestId(11), Ok(Reply::Voted)).unwrap();
    receive(&mut server, &request(12, Request::Finish { txn: txn(1) }));
    assert_eq!(events(&mut server).len(), 2);
    server.reply(RequestId(12), Ok(Reply::Finished { tid: Tid(3) })).unwrap();
    assert_eq!(server.transactions().count(), 0);
}

#[test]
fn conflicts_that_do_not_fit_end_the_transaction() {
    let mut server = support::server_for(Default::default(), Limits { frame: 4096, ..Limits::default() });
    receive(&mut server, &request(1, begin(1)));
    server.reply(RequestId(1), Ok(Reply::Done)).unwrap();
    receive(&mut server, &request(2, Request::Commit { txn: txn(1) }));
    events(&mut server);
    let conflict = Conflict { oid: Oid(1), committed: Tid::MAX, base: Tid::MAX };
    server.reply(RequestId(2), Ok(Reply::Conflicts(vec![conflict; 1000]))).unwrap();
    assert_eq!(events(&mut server), [Event::Abandoned { txn: txn(1) }]);
    assert_eq!(server.transactions().count(), 0);
}

#[test]
fn an_abort_answers_uploads_and_drops_their_bytes() {
    let mut server = server_in(State::Open);
    for id in [10, 11, 12] {
        receive(&mut server, &request(id, store_blob(1)));
    }
    let start = |id| Message::BlobStart { transfer: TransferId(id), from: 0, end: 8, size: 8, digest: None };
    receive(&mut server, &start(10));
    receive(&mut server, &start(11));
    receive(&mut server, &Message::BlobChunk { transfer: TransferId(10), offset: 0, len: 4 });
    server.payload_moved(Time::ZERO, 4).unwrap();
    events(&mut server);
    let abort = Request::Abort { txn: txn(1) };
    receive(&mut server, &request(13, abort.clone()));
    let reported = events(&mut server);
    for id in [10, 11, 12] {
        let aborted = |event: &&Event| matches!(event, Event::Transfer(TransferEvent::Aborted { transfer, .. }) if transfer.0 == id);
        assert_eq!(reported.iter().filter(aborted).count(), 1);
        assert_eq!(
            server.reply(RequestId(id), Ok(Reply::Done)),
            Err(UsageError::NoSuchRequest(RequestId(id)))
        );
    }
    assert_eq!(
        reported.last(),
        Some(&Event::Request { id: RequestId(13), request: abort }),
        "the caller gets it last"
    );
    assert_eq!(said(&mut server).len(), 3);
    // The client sent these before the answer arrived: the third transfer begins only now.
    receive(&mut server, &start(12));
    receive(&mut server, &Message::BlobChunk { transfer: TransferId(10), offset: 4, len: 4 });
    server.payload_moved(Time::ZERO, 4).unwrap();
    receive(&mut server, &Message::BlobStop { transfer: TransferId(10), digest: Digest([0; 32]) });
    for id in [11, 12] {
        receive(
            &mut server,
            &Message::BlobAbort { transfer: TransferId(id), reason: RequestError::Cancelled },
        );
    }
    assert_eq!((events(&mut server), said(&mut server)), (vec![], vec![]), "they are not reported again");
}

#[test]
fn late_answers_do_not_reach_a_new_transaction() {
    let mut server = server_in(State::Open);
    receive(&mut server, &request(10, store(1)));
    receive(&mut server, &request(11, Request::Abort { txn: txn(1) }));
    receive(&mut server, &request(12, begin(1)));
    receive(&mut server, &request(13, Request::Vote { txn: txn(1) }));
    events(&mut server);
    server.reply(RequestId(10), Ok(Reply::Done)).unwrap();
    assert_eq!(events(&mut server), [], "the begin is not answered yet");
    server.reply(RequestId(12), Ok(Reply::Done)).unwrap();
    assert_eq!(events(&mut server).len(), 1);
}

#[test]
fn open_transactions_are_listed_with_their_phases() {
    for (state, phase) in [
        (State::Open, Phase::Open),
        (State::Doomed, Phase::Doomed),
        (State::Held, Phase::Open),
        (State::Voting, Phase::Voting),
        (State::Voted, Phase::Voted),
        (State::Finishing, Phase::Finishing),
    ] {
        assert_eq!(server_in(state).transactions().collect::<Vec<_>>(), [(txn(1), phase)]);
    }
}

#[test]
fn a_cancel_is_reported_once_and_only_for_passed_requests() {
    let mut server = server_in(State::Held);
    for id in [2, 2, 3, 9] {
        receive(&mut server, &Message::Cancel { id: RequestId(id) });
    }
    assert_eq!(events(&mut server), [Event::Cancelled { id: RequestId(2) }]);
    assert_eq!(
        (said(&mut server), server.requests_in_flight()),
        (vec![], 2),
        "they still want their answers"
    );
}
