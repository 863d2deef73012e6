//! Numbers as people read them: sizes, moments, tables.

use std::time::Duration;

use blobferry_protocol::Tid;

/// A number of bytes: `64.0 MiB`, `512 B`.
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

/// The moment of a transaction, UTC, to the second: `2025-01-31T23:59:59Z`. `-` for what is not a moment after 1970.
pub(crate) fn moment(tid: Tid) -> String {
    tid.to_unix().map_or_else(|| "-".into(), iso)
}

/// A moment in ISO 8601, from the time since 1970.
pub(crate) fn iso(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian).
fn civil(mut days: u64) -> (u64, u64, u64) {
    const YEARS_400: u64 = 146_097;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970 + days / YEARS_400 * 400;
    days %= YEARS_400;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// Rows in aligned columns, two spaces apart; a column that has only numbers, or `-`, is aligned to the right.
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
    fn moments_are_iso_8601() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(iso(Duration::from_secs(seconds)), text);
            // A tid's fraction of a minute is rounded down: ask half a second later.
            assert_eq!(moment(Tid::from_unix(Duration::from_millis(seconds * 1000 + 500))), text);
        }
        assert_eq!(moment(Tid::ZERO), "-");
    }

    #[test]
    fn columns_of_numbers_are_aligned_to_the_right() {
        let rows = [["name", "size"], ["a", "5"], ["b", "-"], ["longer", "1234"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(table(&rows), "name    size\na          5\nb          -\nlonger  1234\n");
    }

    proptest! {
        #[test]
        fn moments_sort_as_they_follow(a in 0u64..200_000_000_000, b in 0u64..200_000_000_000) {
            prop_assert_eq!(iso(Duration::from_secs(a)).cmp(&iso(Duration::from_secs(b))), a.cmp(&b));
        }
    }
}
