//! Every message in every state of both state machines.
//!
//! Each state names the messages that it accepts. Every other message must be refused, with a typed
//! error that changes nothing, or end the connection. The whole table is in `states.txt`, where a
//! reviewer sees each change of behaviour.
//! `BLOBFERRY_WRITE_STATES=1 cargo test -p blobferry-protocol --test machine states` writes it
//! again.

mod client;
mod server;

use std::fmt::{Debug, Write};

use blobferry_protocol::{Message, PeerError, Request, RequestId, TransferEvent, TransferId, TxnId};

use crate::golden_table::table;
use crate::support::frame;

/// A connection in a state, with the ids and offsets that a message needs to fit this state.
struct Setup<C> {
    connection: C,
    /// The number of the next request.
    next: u64,
    /// The request, and transfer, of this state.
    about: RequestId,
    /// The offset of the next byte of that transfer.
    offset: u64,
}

/// A state, and the names of the messages that it accepts.
struct State<C> {
    name: &'static str,
    takes: String,
    setup: fn() -> Setup<C>,
}

/// The transaction of all states.
const TXN: TxnId = TxnId([1; 16]);

/// Returns the name of a variant.
fn variant(value: &impl Debug) -> String {
    format!("{value:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()
}

/// The name of a message in the table, and the message.
type Row = (String, Message);

/// Returns one message, one request and one reply of each kind, in the order of the specification.
fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (_, message, _) in table() {
        let name = match &message {
            Message::Request { request, .. } => variant(request),
            Message::Reply { result: Ok(reply), .. } => format!("={}", variant(reply)),
            Message::Reply { result: Err(_), .. } => "=error".to_owned(),
            other => variant(other),
        };
        if rows.iter().all(|(known, _)| *known != name) {
            rows.push((name, message));
        }
    }
    rows
}

/// Returns the message with the ids and offsets of a setup. A new kind of message has to be added
/// here.
fn aimed<C>(message: Message, setup: &Setup<C>) -> Message {
    let (id, transfer) = (setup.about, TransferId::from(setup.about));
    match message {
        Message::Request { request, .. } => {
            Message::Request { id: RequestId(setup.next), request: of_txn(request) }
        }
        Message::Reply { result, .. } => Message::Reply { id, result },
        Message::BlobStart { digest, .. } => {
            Message::BlobStart { transfer, from: 0, end: 1000, size: 1000, digest }
        }
        Message::BlobChunk { len, .. } => Message::BlobChunk { transfer, offset: setup.offset, len },
        Message::BlobStop { digest, .. } => Message::BlobStop { transfer, digest },
        Message::BlobAbort { reason, .. } => Message::BlobAbort { transfer, reason },
        Message::Credit { .. } => Message::Credit { transfer, upto: 1 << 40 },
        Message::ConnectionCredit { .. } => Message::ConnectionCredit { upto: 1 << 50 },
        Message::Cancel { .. } => Message::Cancel { id },
        other @ (Message::Hello(_)
        | Message::Welcome(_)
        | Message::Refuse(_)
        | Message::Invalidate { .. }
        | Message::Ping { .. }
        | Message::Pong { .. }
        | Message::Goodbye) => other,
    }
}

/// Returns the request with the transaction of all states.
fn of_txn(request: Request) -> Request {
    let txn = TXN;
    match request {
        Request::Begin { meta, .. } => Request::Begin { txn, meta },
        Request::Store { oid, base, data, .. } => Request::Store { txn, oid, base, data },
        Request::StoreBlob { oid, base, data, .. } => Request::StoreBlob { txn, oid, base, data },
        Request::StoreShared { oid, base, data, name, size, digest, .. } => {
            Request::StoreShared { txn, oid, base, data, name, size, digest }
        }
        Request::Delete { oid, base, .. } => Request::Delete { txn, oid, base },
        Request::Vote { .. } => Request::Vote { txn },
        Request::Finish { .. } => Request::Finish { txn },
        Request::Commit { .. } => Request::Commit { txn },
        Request::Abort { .. } => Request::Abort { txn },
        Request::Outcome { .. } => Request::Outcome { txn },
        Request::Attach { .. } => Request::Attach { txn },
        other @ (Request::Load { .. }
        | Request::LoadBefore { .. }
        | Request::LoadSerial { .. }
        | Request::History { .. }
        | Request::NewOids { .. }
        | Request::SendBlob { .. }
        | Request::Status
        | Request::Pack { .. }) => other,
    }
}

fn is_store(request: &Request) -> bool {
    matches!(
        request,
        Request::Store { .. }
            | Request::StoreBlob { .. }
            | Request::StoreShared { .. }
            | Request::Delete { .. }
    )
}

/// What the table needs of a connection of either side.
trait Machine {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, PeerError>;
    /// Returns the names of the events and messages since the last call. `own` is the latest
    /// request.
    fn happened(&mut self, own: RequestId) -> Vec<String>;
    /// Returns the phase of the transaction on this side, and the rest of the visible state.
    fn seen(&self) -> (String, String);
}

/// Returns the name of a transfer event in the table.
fn of_transfer(event: &TransferEvent) -> String {
    match event {
        TransferEvent::Started { .. } => "begins".into(),
        TransferEvent::Stopped { .. } => "ends".into(),
        TransferEvent::Aborted { reason, .. } => format!("is given up ({})", variant(reason)),
    }
}

/// The effect of a message.
struct Cell {
    text: String,
    refused: bool,
}

impl<C: Machine> State<C> {
    fn receive(&self, message: &Message) -> Cell {
        let mut setup = (self.setup)();
        setup.connection.happened(RequestId(0));
        let frame = frame(&aimed(message.clone(), &setup));
        let before = setup.connection.seen();
        let taken = setup.connection.take(&frame);
        let happened = setup.connection.happened(RequestId(setup.next));
        if let Err(error) = taken {
            assert_eq!(happened.iter().find(|what| *what != "refused"), None, "{}: {message:?}", self.name);
            assert_eq!(
                setup.connection.take(&frame),
                Err(error.clone()),
                "a dead connection accepts nothing"
            );
            return Cell { text: format!("dies: {}", variant(&error)), refused: true };
        }
        assert_eq!(taken, Ok(frame.len()));
        let after = setup.connection.seen();
        let refused = matches!(&happened[..], [only] if only.starts_with("no: "));
        assert!(!refused || before.1 == after.1, "{}: {message:?}: {before:?} {after:?}", self.name);
        let mut text = if happened.is_empty() { "accepted".to_owned() } else { happened.join(", ") };
        if before.0 != after.0 {
            write!(text, " > {}", after.0).unwrap();
        }
        // A refusal changes nothing, except that a refused store dooms its transaction.
        let dooms = matches!(message, Message::Request { request, .. } if is_store(request));
        Cell { text, refused: refused && (before.0 == after.0 || dooms && after.0 == "doomed") }
    }

    /// Returns this state's part of the table, and adds to `wrong` what differs from the messages
    /// that it accepts.
    fn render(&self, rows: &[Row], wrong: &mut Vec<String>) -> String {
        let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
        for (name, message) in rows {
            let cell = self.receive(message);
            let takes = self.takes.split_whitespace().any(|taken| taken == name);
            if takes == cell.refused {
                wrong.push(format!("{}: {name}: {}", self.name, cell.text));
            }
            match groups.iter_mut().find(|(text, _)| *text == cell.text) {
                Some((_, names)) => names.push(name),
                None => groups.push((cell.text, vec![name])),
            }
        }
        groups.sort_by_key(|(text, _)| (text.starts_with("dies"), text.starts_with("no: ")));
        let mut part = format!("\n{}\n", self.name);
        for (text, names) in groups {
            let mut line = format!("    {text:<32}");
            for name in in_short(&names, rows) {
                if line.len() + name.len() >= 110 {
                    writeln!(part, "{line}").unwrap();
                    line = " ".repeat(36);
                }
                write!(line, " {name}").unwrap();
            }
            writeln!(part, "{line}").unwrap();
        }
        part
    }
}

/// Replaces all requests by one word, and all replies by another, if none is missing.
fn in_short<'a>(names: &[&'a str], rows: &[Row]) -> Vec<&'a str> {
    type IsOfIt = fn(&Message) -> bool;
    let mut short = names.to_vec();
    let classes: [(&str, IsOfIt); 2] = [
        ("(every-request)", |message| matches!(message, Message::Request { .. })),
        ("(every-reply)", |message| matches!(message, Message::Reply { .. })),
    ];
    for (word, is_of_it) in classes {
        let of_it = |name: &str| rows.iter().any(|(row, message)| row == name && is_of_it(message));
        if rows.iter().all(|(row, message)| !is_of_it(message) || names.contains(&row.as_str())) {
            short.retain(|name| !of_it(name));
            short.push(word);
        }
    }
    short
}

const HEAD: &str = "\
The effect of every message in every state of both state machines. The tests beside this file write and compare it.

    passed, begins, ...     an event for the caller        no: X       refused with the request error X
    answered: X             the connection itself answers  dies: X     ends the connection, with the peer error X
    accepted                without an event               > phase     the phase of the transaction from then on
";

#[test]
fn every_state_accepts_and_refuses_what_states_txt_says() {
    let rows = rows();
    let (mut written, mut wrong) = (HEAD.to_owned(), Vec::new());
    written += "\n\nA SERVER. Messages and requests have their names; =X is a reply X.\n";
    server::states().iter().for_each(|state| written += &state.render(&rows, &mut wrong));
    written += "\n\nA CLIENT. The same.\n";
    client::states().iter().for_each(|state| written += &state.render(&rows, &mut wrong));
    assert!(wrong.is_empty(), "accepted or refused, unlike the states here say:\n{}", wrong.join("\n"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine/states/states.txt");
    if std::env::var_os("BLOBFERRY_WRITE_STATES").is_some() {
        std::fs::write(path, &written).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap();
    for (line, (is, was)) in written.lines().zip(known.lines()).enumerate() {
        assert_eq!(is, was, "line {} of {path}", line + 1);
    }
    assert_eq!(written.len(), known.len(), "{path} ends elsewhere");
}

#[test]
fn every_request_error_has_the_same_effect_on_a_client() {
    let errors = table().into_iter().map(|(_, message, _)| message);
    let errors: Vec<Message> =
        errors.filter(|message| matches!(message, Message::Reply { result: Err(_), .. })).collect();
    assert!(errors.len() >= 21);
    for state in client::states() {
        let texts = errors.iter().map(|error| state.receive(error).text);
        assert_eq!(texts.collect::<std::collections::BTreeSet<_>>().len(), 1, "{}", state.name);
    }
}
