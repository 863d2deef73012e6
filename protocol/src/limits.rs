//! The limits that each side announces in the handshake: nothing grows beyond them.

use serde::{Deserialize, Serialize};

/// What one side of a connection accepts from the other.
///
/// Both sides announce their limits in the handshake, and each obeys the other's. A peer that
/// passes a limit gets a typed error, and no memory. All sizes are in bytes.
///
/// | field | default | least ([`Limits::MIN`]) |
/// |---|---|---|
/// | `frame` | 16 MiB | 4096 |
/// | `chunk` | 256 KiB | 1 |
/// | `transfer_window` | 2 MiB | 1 |
/// | `connection_window` | 4 MiB | 1 |
/// | `transfers` | 1024 | 1 |
/// | `requests` | 4096 | 1 |
/// | `transactions` | 256 | 1 |
/// | `control_queue` | 32 MiB | 4096 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// The longest frame, without its length field. Only records, lists and texts make a frame
    /// longer than [`Limits::SMALL_FRAME`]. Default: 16 MiB.
    pub frame: u32,
    /// The longest run of payload after one [`BlobChunk`](crate::Message::BlobChunk). A small
    /// message waits behind at most one chunk. Default: 256 KiB.
    pub chunk: u32,
    /// The window of each transfer to this side: how far the sender may be ahead of the bytes that
    /// this side has [stored](crate::connection::Connection::stored).
    ///
    /// A transfer begins with this much credit. Whenever half of the window or less is left, the
    /// connection grants credit for a whole window again. Default: 2 MiB.
    pub transfer_window: u64,
    /// The window of all transfers to this side together, with the same rule. Default: 4 MiB.
    pub connection_window: u64,
    /// Transfers to this side at the same time. Default: 1024.
    pub transfers: u32,
    /// Requests to this side without an answer. Only a server's value matters. Default: 4096.
    pub requests: u32,
    /// Open transactions of one connection. Only a server's value matters. Default: 256.
    pub transactions: u32,
    /// Control bytes that wait in this side until they are sent. Beyond this limit the connection
    /// ends with [`PeerError::NotReading`](crate::PeerError::NotReading).
    ///
    /// Requests that do not end a transaction fill at most half of the queue, and no single one is
    /// longer than that half. Default: 32 MiB.
    pub control_queue: u32,
}

impl Limits {
    /// The longest frame before the handshake is done, whatever the limits are.
    pub const HANDSHAKE_FRAME: u32 = 4096;
    /// The longest frame of a kind that carries no record, list or text.
    pub const SMALL_FRAME: u32 = 4096;
    /// The most elements of any one list in a message: 1,048,576.
    ///
    /// [`wire::encode`](crate::wire::encode) and [`wire::decode`](crate::wire::decode) both refuse
    /// a longer list.
    pub const LIST: usize = 1 << 20;

    /// The least value of each field that a peer may announce.
    ///
    /// A connection refuses smaller limits with
    /// [`PeerError::BadLimits`](crate::PeerError::BadLimits), because it could send no handshake,
    /// no chunk or no request then. These are not useful values: a window of 1 byte costs a round
    /// trip for each byte. `MIN` is also what
    /// [`peer_limits`](crate::connection::Connection::peer_limits) returns until the handshake is
    /// done.
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
