//! The raw peers encode and decode the frames that PROTOCOL.md shows.

use super::decode::read_message;
use super::encode::{Body, Digest, Limits, Txn, message, request};

fn specification() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/PROTOCOL.md")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns every frame in a table of the specification.
fn specified_frames() -> Vec<Vec<u8>> {
    let text = specification();
    let quoted = text.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('`'));
    let frames = quoted.filter(|word| word.len() >= 10 && word.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    frames.map(|frame| frame.as_bytes().chunks(2).map(byte).collect()).collect()
}

#[test]
fn raw_encoder_matches_the_specification() {
    let txn: Txn = std::array::from_fn(|n| n as u8);
    let digest: Digest = std::array::from_fn(|n| 0xa0 + n as u8);
    let requests = [
        request::begin(txn, b"ann", b"new"),
        request::store(txn, 7, 300, b"rec"),
        request::store_blob(txn, 7, 300, b"rec"),
        request::delete(txn, 7, 300),
        request::vote(txn),
        request::finish(txn),
        request::commit(txn),
        request::abort(txn),
        request::outcome(txn),
        request::load(7),
        request::load_before(7, 300),
        request::load_serial(7, 300),
        request::history(7, 10),
        request::new_oids(16),
        request::send_blob(7, 300, 128, u64::MAX),
        request::status(),
        request::pack(300),
        request::attach(txn),
    ];
    let requests = requests.map(|request| Body::numbered(5, &request));
    let others = [
        Body::hello(1, 1, Limits::DEFAULT, b"key"),
        Body::welcome(Limits::DEFAULT, 300),
        Body::blob_start(5, 128, 256, 1000),
        Body::blob_chunk(5, 128, 128),
        Body::blob_stop(5, digest),
        Body::blob_abort(5, 14),
        Body::new(message::CREDIT).ints([5, 300]),
        Body::new(message::CONNECTION_CREDIT).int(4 << 20),
        Body::new(message::CANCEL).int(5),
        Body::new(message::PING).int(1),
        Body::new(message::PONG).int(1),
        Body::new(message::GOODBYE),
    ];
    let shown = specified_frames();
    for body in requests.into_iter().chain(others) {
        let frame = body.frame();
        assert!(shown.contains(&frame), "{}", hex(&frame));
    }
}

#[test]
fn raw_decoder_understands_the_specifications_frames() {
    let mut decoded = 0;
    for mut frame in specified_frames() {
        match frame[4] {
            message::HELLO | message::REQUEST | message::CANCEL => continue,
            message::BLOB_CHUNK => frame.extend([0; 128]),
            _ => {}
        }
        let mut rest = &frame[..];
        assert!(read_message(&mut rest).unwrap().is_some());
        assert!(rest.is_empty(), "{}", hex(&frame));
        decoded += 1;
    }
    assert!(decoded > 50, "the tables are missing");
}
