//! transport-mio, whose calls block already.

use std::convert::identity;

implement_with!(blobferry_transport_mio, identity, identity);
