//! `status`: print the server's counters.

use std::io::Write;

use blobferry_protocol::Tid;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::output::{Output, Render};
use crate::remote::Remote;

/// The counter that is a transaction, not a number.
const LAST_TID: &str = "last_tid";

/// All counters, in the server's order: one JSON object, or one line per counter.
#[derive(Serialize)]
#[serde(transparent)]
struct Status(Map<String, Value>);

impl From<Vec<(String, u64)>> for Status {
    fn from(counters: Vec<(String, u64)>) -> Status {
        let value =
            |name: &str, count| if name == LAST_TID { Tid(count).to_string().into() } else { count.into() };
        Status(counters.into_iter().map(|(name, count)| (name.clone(), value(&name, count))).collect())
    }
}

impl Render for Status {
    fn plain(&self) -> String {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let lines: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{name}\t{}", text(value))).collect();
        lines.join("\n")
    }
}

/// Runs `status`.
pub(super) async fn run<W: Write>(remote: &Remote, output: &mut Output<W>) -> Result<(), Failure> {
    output.line(&Status::from(remote.status().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_numbers_and_last_tid_is_hexadecimal() {
        let status = Status::from(vec![("last_tid".to_owned(), 255), ("blobs".to_owned(), 3)]);
        assert!(status.plain().lines().any(|line| line == "last_tid\t00000000000000ff"));
        assert_eq!(status.plain().lines().count(), 2);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["last_tid"], &json["blobs"]), (&"00000000000000ff".into(), &3.into()));
    }
}
