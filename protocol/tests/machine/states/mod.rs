//! Every message in every state of both machines. Each state names what it takes; everything else must be refused, by a
//! typed error that changes nothing, or end the connection. The whole table is in `states.txt`, for people to read:
//! where a machine does something else than stands there, that is for them to judge.
//!
//! `BLOBFERRY_WRITE_STATES=1 cargo test -p blobferry-protocol --test machine states` writes it again.

mod client;
mod server;

use std::fmt::{Debug, Write};

use blobferry_protocol::{Message, PeerError, Request, RequestId, TransferEvent, TransferId, TxnId};

use crate::golden_table::table;
use crate::support::frame;

/// A machine in a state, and what messages have to be about to make as much sense there as they can.
struct Scene<C> {
    connection: C,
    /// The number of the next request.
    next: u64,
    /// The request, and transfer, that this state is about.
    about: RequestId,
    /// Where the next byte of that belongs.
    offset: u64,
}

/// A state, and the kinds of message that it takes, by their names.
struct State<C> {
    name: &'static str,
    takes: String,
    scene: fn() -> Scene<C>,
}

/// The transaction that everything is about.
const TXN: TxnId = TxnId([1; 16]);

/// The name of a variant.
fn variant(value: &impl Debug) -> String {
    format!("{value:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()
}

/// A message, and what it is called in the table.
type Row = (String, Message);

/// One message of each kind, one request of each, and one answer of each, in the order of the specification.
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

/// The same message, about what a scene is about. Whoever adds a message has to say here how that is.
fn aimed<C>(message: Message, scene: &Scene<C>) -> Message {
    let (id, transfer) = (scene.about, TransferId::from(scene.about));
    match message {
        Message::Request { request, .. } => {
            Message::Request { id: RequestId(scene.next), request: of_txn(request) }
        }
        Message::Reply { result, .. } => Message::Reply { id, result },
        Message::BlobStart { digest, .. } => {
            Message::BlobStart { transfer, from: 0, end: 1000, size: 1000, digest }
        }
        Message::BlobChunk { len, .. } => Message::BlobChunk { transfer, offset: scene.offset, len },
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

/// The same request, in the transaction that everything is about.
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

/// A machine of either kind, as the table looks at it.
trait Machine {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, PeerError>;
    /// What has happened since the last time, and what was said about it, in words; `own`: the request just made.
    fn happened(&mut self, own: RequestId) -> Vec<String>;
    /// The phase of the transaction, as far as this side knows, and all that can be seen beside it.
    fn seen(&self) -> (String, String);
}

/// What is told of a transfer.
fn of_transfer(event: &TransferEvent) -> String {
    match event {
        TransferEvent::Started { .. } => "begins".into(),
        TransferEvent::Stopped { .. } => "ends".into(),
        TransferEvent::Aborted { reason, .. } => format!("is given up ({})", variant(reason)),
    }
}

/// What comes of a message.
struct Cell {
    text: String,
    refused: bool,
}

impl<C: Machine> State<C> {
    fn hear(&self, message: &Message) -> Cell {
        let mut scene = (self.scene)();
        scene.connection.happened(RequestId(0));
        let frame = frame(&aimed(message.clone(), &scene));
        let before = scene.connection.seen();
        let taken = scene.connection.take(&frame);
        let happened = scene.connection.happened(RequestId(scene.next));
        if let Err(error) = taken {
            assert_eq!(happened.iter().find(|what| *what != "refused"), None, "{}: {message:?}", self.name);
            assert_eq!(scene.connection.take(&frame), Err(error.clone()), "the dead hear nothing");
            return Cell { text: format!("dies: {}", variant(&error)), refused: true };
        }
        assert_eq!(taken, Ok(frame.len()));
        let after = scene.connection.seen();
        let refused = matches!(&happened[..], [only] if only.starts_with("no: "));
        assert!(!refused || before.1 == after.1, "{}: {message:?}: {before:?} {after:?}", self.name);
        let mut text = if happened.is_empty() { "heard".to_owned() } else { happened.join(", ") };
        if before.0 != after.0 {
            write!(text, " > {}", after.0).unwrap();
        }
        // A refusal that changes something is none, but for this: what should have been stored and is not dooms.
        let dooms = matches!(message, Message::Request { request, .. } if is_store(request));
        Cell { text, refused: refused && (before.0 == after.0 || dooms && after.0 == "doomed") }
    }

    /// This state's part of the table: what comes of which messages, and where that is not what the state takes.
    fn render(&self, rows: &[Row], wrong: &mut Vec<String>) -> String {
        let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
        for (name, message) in rows {
            let cell = self.hear(message);
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

/// Names, with one word for all requests, and one for all replies, where none is missing.
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
What comes of every message in every state of both machines. Generated, and compared, by the tests beside this file.

    asked, begins, ...      the caller hears of it         no: X       refused with the request error X
    answered: X             the machine itself says so     dies: X     ends the connection, with the peer error X
    heard                   taken, with nothing to tell    > phase     what the transaction is from then on
";

#[test]
fn every_message_in_every_state_is_taken_or_refused_as_written_down() {
    let rows = rows();
    let (mut written, mut wrong) = (HEAD.to_owned(), Vec::new());
    written += "\n\nA SERVER. Messages by their names, requests by theirs, and =X: a reply X.\n";
    server::states().iter().for_each(|state| written += &state.render(&rows, &mut wrong));
    written += "\n\nA CLIENT. The same.\n";
    client::states().iter().for_each(|state| written += &state.render(&rows, &mut wrong));
    assert!(wrong.is_empty(), "taken or refused against what is said here:\n{}", wrong.join("\n"));
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
fn every_error_that_answers_a_request_is_the_same_to_a_client() {
    let errors = table().into_iter().map(|(_, message, _)| message);
    let errors: Vec<Message> =
        errors.filter(|message| matches!(message, Message::Reply { result: Err(_), .. })).collect();
    assert!(errors.len() >= 21);
    for state in client::states() {
        let texts = errors.iter().map(|error| state.hear(error).text);
        assert_eq!(texts.collect::<std::collections::BTreeSet<_>>().len(), 1, "{}", state.name);
    }
}
