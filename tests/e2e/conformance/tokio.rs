//! The client and server of transport-tokio; each call blocks on one runtime that all tests share.

use std::sync::OnceLock;

use tokio::runtime::Runtime;

implement_with!(blobferry_transport_tokio, wait, tokio::fs::File::from_std);

fn wait<F: Future>(future: F) -> F::Output {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap()).block_on(future)
}
