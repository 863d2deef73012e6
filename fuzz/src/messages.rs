//! Fuzz target: arbitrary bytes as the body of a frame.
//!
//! A message that is decoded, encoded and decoded again is the same. With a byte more or less, the
//! bytes are no message. A length or a count in the bytes never causes an allocation by itself.

use blobferry_protocol::wire;
use blobferry_protocol::wire::{DecodeError, EncodeError, LENGTH_BYTES};
use blobferry_protocol::{Message, RequestError};

use crate::memory::bounded;

/// Decodes the bytes as a message.
pub fn messages(body: &[u8]) {
    let decoded = bounded(body.len(), 4096, || wire::decode(body));
    let message = match decoded {
        Ok(message) => message,
        Err(DecodeError::Malformed) => return,
        Err(DecodeError::Trailing(rest)) => {
            assert!(0 < rest && rest < body.len(), "{rest} bytes are left over of {}", body.len());
            assert!(wire::decode(&body[..body.len() - rest]).is_ok(), "what is before them is a message");
            return;
        }
        Err(error) => panic!("an unknown error: {error}"),
    };
    let mut frame = Vec::new();
    assert_eq!(wire::encode(&message, u32::MAX, &mut frame), Ok(()));
    let (length, again) = frame.split_at(LENGTH_BYTES);
    assert_eq!(length, (again.len() as u32).to_le_bytes());
    assert!(again.len() <= body.len(), "encoding does not add bytes");
    assert_eq!(wire::decode(again).as_ref(), Ok(&message));

    let shorter = &body[..body.len() - 1];
    assert_eq!(wire::decode(shorter), Err(DecodeError::Malformed), "a part of a message is none");
    let longer = [body, &[0]].concat();
    assert_eq!(wire::decode(&longer), Err(DecodeError::Trailing(1)));

    let mut out = vec![9];
    let (len, max) = (again.len() as u64, again.len() as u32 - 1);
    assert_eq!(
        wire::encode(&message, max, &mut out),
        Err(EncodeError::TooLong { len, max }),
        "it does not fit"
    );
    assert_eq!(out, [9], "nothing is left of it");
    if let Some(error) = error_in(&message) {
        assert!(!error.to_string().is_empty(), "the error has a message");
    }
}

fn error_in(message: &Message) -> Option<&RequestError> {
    match message {
        Message::Reply { result: Err(error), .. } | Message::BlobAbort { reason: error, .. } => Some(error),
        _ => None,
    }
}
