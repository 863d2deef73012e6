//! What a side can take: everything is bounded, and both sides say so in the handshake.

use serde::{Deserialize, Serialize};

/// What one side of a connection can take from the other.
///
/// Both sides announce theirs in the handshake; each obeys the other's. Passing a limit is a typed error, never
/// growth. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The longest frame (its length field not counted). Object records are the only long ones.
    pub frame: u32,
    /// The longest run of payload after one [`BlobChunk`](crate::Message::BlobChunk). Small messages wait for at
    /// most one of these.
    pub chunk: u32,
    /// The credit that every transfer begins with, and is kept at as its bytes are taken.
    pub transfer_window: u64,
    /// The same for all transfers together.
    pub connection_window: u64,
    /// Transfers at once towards this side.
    pub transfers: u32,
    /// Requests without an answer at once.
    pub requests: u32,
    /// Transactions open at once.
    pub transactions: u32,
    /// Control bytes that may wait to be sent before the connection is given up as one that does not read. Requests
    /// other than those that end a transaction fill at most half of it, and none is longer than that.
    pub control_queue: u32,
}

impl Limits {
    /// The longest frame before the handshake is done, whatever the limits say.
    pub const HANDSHAKE_FRAME: u32 = 4096;
    /// The longest frame of a kind that carries no record, list or text.
    pub const SMALL_FRAME: u32 = 4096;
    /// Elements in any one list.
    pub const LIST: usize = 1 << 20;

    /// The least that a peer may announce for each field: below this no conversation is possible.
    pub const MIN: Limits = Limits {
        frame: Limits::HANDSHAKE_FRAME,
        chunk: 1,
        transfer_window: 1,
        connection_window: 1,
        transfers: 1,
        requests: 1,
        transactions: 1,
        control_queue: Limits::HANDSHAKE_FRAME,
    };
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            frame: 16 << 20,
            chunk: 256 << 10,
            transfer_window: 2 << 20,
            connection_window: 4 << 20,
            transfers: 1024,
            requests: 4096,
            transactions: 256,
            control_queue: 32 << 20,
        }
    }
}
