//! The blocking client and server of transport-mio.

use std::convert::identity;

implement_with!(blobferry_transport_mio, identity, identity);
