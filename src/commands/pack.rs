//! `pack`: delete the revisions that were replaced before a point in time.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blobferry_catalog::Objects;
use blobferry_protocol::{Packed, Tid};
use serde::Serialize;

use crate::cli::PackArgs;
use crate::failure::Failure;
use crate::format::size;
use crate::output::{Output, Render};
use crate::remote::Remote;

/// The deleted revisions.
#[derive(Serialize)]
struct PackResult {
    #[serde(serialize_with = "crate::output::text")]
    before: Tid,
    revisions: u64,
    blobs: u64,
    bytes: u64,
}

impl Render for PackResult {
    fn plain(&self) -> String {
        let PackResult { before, revisions, blobs, bytes } = self;
        format!("forgot {revisions} revisions and {blobs} blobs ({}) from before {before}", size(*bytes))
    }
}

/// Runs `pack`.
pub(super) async fn run<W: Write>(
    args: &PackArgs,
    remote: &Remote,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = before(args, remote.last_tid(), now);
    let Packed { revisions, blobs, bytes } = remote.pack(before).await?;
    output.line(&PackResult { before, revisions, blobs, bytes })
}

/// Returns the transaction to pack before. The default is just after the server's last transaction:
/// the clock of this machine may differ from the server's.
fn before(args: &PackArgs, last: Tid, now: Duration) -> Tid {
    let days = |days: u32| Tid::from_unix(now.saturating_sub(Duration::from_secs(u64::from(days) * 86_400)));
    args.before.or_else(|| args.keep_days.map(days)).unwrap_or(Tid(last.0.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_is_up_to_the_last_transaction_by_default() {
        let now = Duration::from_secs(1_000_000_000);
        let args = |before, keep_days| PackArgs { before, keep_days };
        assert_eq!(before(&args(None, None), Tid(7), now), Tid(8));
        assert_eq!(before(&args(Some(Tid(3)), None), Tid(7), now), Tid(3));
        let day_before = Tid::from_unix(Duration::from_secs(1_000_000_000 - 86_400));
        assert_eq!(before(&args(None, Some(1)), Tid(7), now), day_before);
        assert_eq!(before(&args(None, Some(u32::MAX)), Tid(7), now), Tid::from_unix(Duration::ZERO));
    }
}
