//! Text for people: sizes, times, tables.

use std::time::Duration;

use blobferry_protocol::Tid;
use jiff::Timestamp;

/// Formats a number of bytes: `64.0 MiB`, `512 B`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).copied().unwrap_or_default())
}

/// Formats the time of a transaction: `2025-01-31T23:59:59Z`. `-` if it is before 1970.
pub(crate) fn time(tid: Tid) -> String {
    tid.to_unix().map_or_else(|| "-".into(), iso)
}

/// Formats a time since 1970 in ISO 8601: UTC, to the second. `-` if it is after the year 9999.
pub(crate) fn iso(since_epoch: Duration) -> String {
    let seconds = i64::try_from(since_epoch.as_secs()).ok();
    let timestamp = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    timestamp.map_or_else(|| "-".into(), |timestamp| timestamp.to_string())
}

/// Formats rows in aligned columns, two spaces apart. A column of numbers and `-` is aligned to the
/// right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<(usize, bool)> = (0..columns)
        .map(|column| {
            let width = rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
            let is_number = |cell: &str| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit());
            let numbers = rows.iter().skip(1).all(|row| is_number(&cell(row, column)));
            (width, numbers && rows.len() > 1)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, &(width, right)) in widths.iter().enumerate() {
            let cell = cell(row, column);
            let cell = if right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            line.push_str(&cell);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (64 << 20, "64.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_are_iso_8601() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(iso(Duration::from_secs(seconds)), text);
            // A tid's fraction of a minute is rounded down, so this uses half a second later.
            assert_eq!(time(Tid::from_unix(Duration::from_millis(seconds * 1000 + 500))), text);
        }
        assert_eq!(time(Tid::ZERO), "-");
    }

    #[test]
    fn number_columns_are_right_aligned() {
        let rows = [["name", "size"], ["a", "5"], ["b", "-"], ["longer", "1234"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(table(&rows), "name    size\na          5\nb          -\nlonger  1234\n");
    }

    proptest! {
        #[test]
        fn formatted_times_sort_by_time(a in 0u64..200_000_000_000, b in 0u64..200_000_000_000) {
            prop_assert_eq!(iso(Duration::from_secs(a)).cmp(&iso(Duration::from_secs(b))), a.cmp(&b));
        }
    }
}
