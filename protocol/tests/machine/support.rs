//! Connections without a peer, and the messages that they send.

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::{
    Config, Hello, Limits, MAGIC, Message, Oid, Request, RequestId, Tid, Time, TxnId, TxnMeta, Welcome,
    client, server, wire,
};

/// Settings with windows that never fill.
pub(crate) fn wide() -> Config {
    let windows = Limits { transfer_window: 1 << 40, connection_window: 1 << 40, ..Limits::default() };
    Config { limits: windows, ..Config::default() }
}

pub(crate) fn with(limits: Limits) -> Config {
    Config { limits, ..Config::default() }
}

pub(crate) fn txn(n: u8) -> TxnId {
    TxnId([n; 16])
}

pub(crate) fn frame(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    wire::encode(message, u32::MAX, &mut frame).unwrap();
    frame
}

pub(crate) fn hello(limits: Limits) -> Message {
    Message::Hello(Hello { magic: MAGIC, version_min: 1, version_max: 1, limits, credentials: Vec::new() })
}

pub(crate) fn request(id: u64, request: Request) -> Message {
    Message::Request { id: RequestId(id), request }
}

pub(crate) fn begin(n: u8) -> Request {
    Request::Begin { txn: txn(n), meta: TxnMeta::default() }
}

pub(crate) fn store(n: u8) -> Request {
    Request::Store { txn: txn(n), oid: Oid(1), base: Tid::ZERO, data: vec![1, 2, 3] }
}

pub(crate) fn store_blob(n: u8) -> Request {
    Request::StoreBlob { txn: txn(n), oid: Oid(1), base: Tid::ZERO, data: vec![1, 2, 3] }
}

/// Returns a server that has welcomed a client with these limits.
pub(crate) fn server_for(config: Config, client: Limits) -> server::Connection {
    let mut server = server::Connection::new(Time::ZERO, config);
    receive(&mut server, &hello(client));
    assert!(matches!(server.poll_event(), Some(server::Event::Hello { .. })));
    server.welcome(Tid::ZERO).unwrap();
    said(&mut server);
    server
}

pub(crate) fn server() -> server::Connection {
    server_for(Config::default(), Limits::default())
}

/// Returns a client that was welcomed by a server with these limits.
pub(crate) fn client_of(config: Config, server: Limits) -> client::Connection {
    let mut client = client::Connection::new(Time::ZERO, config, b"key");
    said(&mut client);
    receive(&mut client, &Message::Welcome(Welcome { version: 1, limits: server, last_tid: Tid::ZERO }));
    assert!(matches!(client.poll_event(), Some(client::Event::Connected(_))));
    client
}

pub(crate) fn client() -> client::Connection {
    client_of(Config::default(), Limits::default())
}

/// Passes a message to a connection, which accepts it.
pub(crate) fn receive<S: Side>(connection: &mut Connection<S>, message: &Message) {
    let frame = frame(message);
    assert_eq!(connection.handle_control(Time::ZERO, &frame), Ok(frame.len()), "{message:?}");
}

/// Passes a message to a connection, and returns the error with which it ends.
pub(crate) fn refuses<S: Side>(
    connection: &mut Connection<S>,
    message: &Message,
) -> blobferry_protocol::PeerError {
    let error = connection.handle_control(Time::ZERO, &frame(message)).unwrap_err();
    assert_eq!(connection.error(), Some(&error));
    assert_eq!(connection.poll_transmit(Time::ZERO, &mut Vec::new()), None, "the dead do not speak");
    assert_eq!(connection.poll_timeout(), None);
    assert_eq!(connection.handle_control(Time::ZERO, &frame(&Message::Goodbye)), Err(error.clone()));
    error
}

/// Returns all messages that the connection sends, without the payload behind its chunks.
pub(crate) fn said<S: Side>(connection: &mut Connection<S>) -> Vec<Message> {
    let mut heads = Vec::new();
    while connection.poll_transmit(Time::ZERO, &mut heads).is_some() {}
    messages(&heads)
}

/// Returns the messages in a sequence of frames.
pub(crate) fn messages(mut frames: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = frames.split_first_chunk() {
        let (body, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        messages.push(wire::decode(body).unwrap());
        frames = rest;
    }
    messages
}

/// Returns all events that wait.
pub(crate) fn events<S: Side>(connection: &mut Connection<S>) -> Vec<S::Event> {
    std::iter::from_fn(|| connection.poll_event()).collect()
}
